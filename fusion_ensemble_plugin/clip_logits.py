"""The ensemble of CLIP vision towers that combines the members' *logits*, inside FusionBench's unchanged task pool.

The task pool puts the ensemble in the place of the vision tower and goes on with what it returns: with P the visual
projection, T the normalised text embeddings (classes, embedding) and s the temperature, the logits of one tower are
s T u with u = P v / |P v| for its pooled features v. A plain mean of pooled features gives the logits of one averaged
feature vector; the mean of the members' logits is another thing, s T mean_i u_i.

It is reached in two steps. The ensemble returns m = mean_i v_i / |P v_i|, so that P m = mean_i u_i; the task pool
normalises that. Then it asks any model with ``is_surgery_model`` to correct the normalised embedding (a seam made for
representation surgery, arXiv:2402.02705), and the ensemble gives back the length that was lost. What follows is linear:
the logits are the members' mean logits, and so accuracy and loss are theirs.

Reducers that are not linear need the members' logits themselves, and so the task's T. What they return is handed to the
task pool as the embedding that has these logits, T⁺ logits / s, which exists while there are no more classes than
embedding dimensions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_ensemble_plugin.clip_head import ClipHead
from fusion_ensemble_plugin.device_map import DeviceMap
from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducer import ListReducer, MeanReducer, Reducer, SumReducer, reduce_tensors
from fusion_ensemble_plugin.weights import Weights

PROJECTION_TOLERANCE = 0.05
"""Distance between two unit vectors above which they don't come from one projection (half precision: 0.01)."""


class ClipLogitEnsemble(ParallelEnsemble):
    """CLIP vision towers that answer with their combined logits in a ``CLIPVisionModelTaskPool``.

    ``forward`` returns pooled features, (batch, hidden), and no other field of the members' outputs.

    Args:
        models: Vision towers that return a ``BaseModelOutputWithPooling``, a mapping with ``pooler_output``, or pooled
            features themselves.
        device_map: As in `ParallelEnsemble`.
        head: The head that they were trained with; with a processor if the reducer is neither mean nor sum.
        **options: As in `ParallelEnsemble`. The reducer combines logits, (batch, classes).

    Raises:
        ValueError: If an argument is wrong, or the reducer makes no logits of logits.
    """

    is_surgery_model = True  # FusionBench's classifier then calls `compute_surgery_features`

    def __init__(
        self, models: Any, device_map: DeviceMap | Placement = None, *, head: ClipHead, **options: Any
    ) -> None:
        reducer = options.get("reducer")
        check_logit_reducer(make_reducer(type(self).default_reducer if reducer is None else reducer))
        super().__init__(models, device_map, **options)
        check_text(self.reducer, head)
        self.register_buffer("projection", head.projection.clone(), persistent=False)
        self.head = head
        self._pending: Tensor | None = None
        self._projection_seen = False

    projection: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return m = mean_i v_i / |P v_i|, the weighted mean of the pooled features divided by their projected norms.

        Returns:
            (batch, hidden), in the dtype of the projection, on the ensemble's output device.
        """
        if self._linear:
            pooled: Tensor = self.run_members(self._normed, (args, kwargs), partial(Fold, self.reducer))
            self._pending = pooled
        else:
            every = self.run_members(self._normed, (args, kwargs), partial(Fold, ListReducer(torch.stack)))
            pooled, self._pending = every.mean(dim=0), every
        return pooled

    def compute_surgery_features(self, image_embeds: Tensor, dataset_name: str) -> tuple[Tensor, None, None]:
        """Turn the task pool's normalised embedding of the latest `forward` into the one with the combined logits.

        Args:
            image_embeds: P m / |P m|, (batch, embedding).
            dataset_name: The task.

        Raises:
            RuntimeError: If there was no `forward` before, or if the task pool projects otherwise than `head` does.
            ValueError: If no embedding has the combined logits.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            raise RuntimeError("compute_surgery_features comes after forward, once")
        embeds = self._project(pending.to(image_embeds.device))
        mean = embeds if self._linear else embeds.mean(dim=0)
        self._check_projection(mean, image_embeds)
        if self._linear:
            return image_embeds * mean.norm(dim=-1, keepdim=True).to(image_embeds.dtype), None, None
        return self._with_logits(embeds, dataset_name).to(image_embeds.dtype), None, None

    def recombine(self, *, weights: Weights = None, reducer: Any = None) -> None:
        """Combine the same members otherwise; see `ParallelEnsemble.recombine`.

        Raises:
            ValueError: As there, or if the reducer makes no logits of logits.
        """
        if reducer is not None:
            check_logit_reducer(make_reducer(reducer))
            check_text(make_reducer(reducer), self.head)
        super().recombine(weights=weights, reducer=reducer)

    @property
    def _linear(self) -> bool:
        return is_linear(self.reducer)

    def _normed(self, index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return one member's v / |P v|."""
        pooled = _pooled(member(*args, **kwargs))
        norm: Tensor = self._project(pooled).norm(dim=-1, keepdim=True)
        return (pooled.to(norm.dtype) / norm).to(self.projection.dtype)

    def _project(self, pooled: Tensor) -> Tensor:
        """Return P v, in at least float32 whatever autocast says."""
        dtype = torch.promote_types(torch.promote_types(pooled.dtype, self.projection.dtype), torch.float32)
        with torch.autocast(pooled.device.type, enabled=False):
            projected: Tensor = F.linear(pooled.to(dtype), self.projection.to(pooled.device, dtype))
        return projected

    def _check_projection(self, mean: Tensor, image_embeds: Tensor) -> None:
        """Compare, on the first batch, what the task pool made of our features with what we think it makes."""
        if not self._projection_seen:
            apart = (F.normalize(mean, dim=-1) - image_embeds).norm(dim=-1).max().item()
            if apart > PROJECTION_TOLERANCE:
                raise RuntimeError(
                    "the task pool's visual projection is not the one of this ensemble's head (embeddings are "
                    f"{apart:.2f} apart); name the task pool's CLIP model: method.clip_model=..."
                )
            self._projection_seen = True

    def _with_logits(self, embeds: Tensor, task: str) -> Tensor:
        """Return the embedding that has the members' combined logits.

        Args:
            embeds: The members' P v / |P v|, (members, batch, embedding).
            task: Its name.
        """
        logits = self.head.logits(embeds, task)
        weights = [weight for weight in self.member_weights if weight != 0]
        combined: Tensor = reduce_tensors(self.reducer, list(logits), weights)
        return self.head.embedding(combined, task, embeds.dtype)


def is_linear(reducer: Reducer) -> bool:
    """Say whether a reducer is linear in the outputs, so that embeddings can be combined in the place of logits."""
    return type(reducer) in (MeanReducer, SumReducer)


def check_logit_reducer(reducer: Reducer) -> None:
    """Try a reducer on two classes.

    Raises:
        ValueError: If it makes no logits of logits.
    """
    tried = reduce_tensors(reducer, [torch.zeros(1, 2)])
    if not (isinstance(tried, Tensor) and tried.shape == (1, 2)):
        raise ValueError(f"the reducer {type(reducer).__name__} does not turn logits into logits")


def check_text(reducer: Reducer, head: ClipHead) -> None:
    """Check that there will be the logits that a reducer combines.

    Raises:
        ValueError: If not.
    """
    if not (head.has_text or is_linear(reducer)):
        raise ValueError(
            f"{type(reducer).__name__} combines the members' logits, for which the head needs a processor: "
            "ClipHead(clip_model, processor); mean and sum need none"
        )


def _pooled(output: Any) -> Tensor:
    """Return the pooled features as FusionBench's classifier would find them."""
    if isinstance(output, Tensor):
        return output
    pooled: Tensor = output["pooler_output"] if hasattr(output, "keys") else output[1]
    return pooled
