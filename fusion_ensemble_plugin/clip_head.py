"""The part of a CLIP model that turns pooled image features into a task's logits, as FusionBench's task pool has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_TOLERANCE = 1e-3
"""Error of the logits handed to the task pool, relative to the largest, above which they are refused."""

LOWEST = -1e4
"""What stands for a logit of -inf, which no embedding has."""

PRETRAINED = "_pretrained_"
"""The name under which a FusionBench pool keeps the model that its members were fine-tuned from."""


class ClipHead:
    """Visual projection, text side and temperature of one CLIP model.

    Args:
        clip_model: A Hugging Face ``CLIPModel``, whose vision tower is not used. Its other parts are shared, not
            copied, and frozen.
        processor: Its processor; needed for `text_embeds` alone.

    Attributes:
        projection: From pooled features to image embeddings, (embedding, hidden).
        logit_scale: What cosines are multiplied by to give logits.
    """

    def __init__(self, clip_model: Any, processor: Any = None) -> None:
        self.projection: Tensor = clip_model.visual_projection.weight.detach()
        self.logit_scale: float = clip_model.logit_scale.detach().double().exp().item()
        self._text_side: Any = _TextSide(clip_model).requires_grad_(False)
        self._processor = processor
        self._text_embeds: dict[str, Tensor] = {}

    @property
    def has_text(self) -> bool:
        """Whether there is a processor, and so `text_embeds`."""
        return self._processor is not None

    def text_embeds(self, task: str, device: torch.device) -> Tensor:
        """Return one direction a class of a task, (classes, embedding), each of norm 1; made once a task.

        Raises:
            ValueError: If there is no processor.
        """
        if not self.has_text:
            raise ValueError("text embeddings need a processor: ClipHead(clip_model, processor)")
        if task not in self._text_embeds:
            # not kept: it holds the task's templates, which are functions without a name and cannot be pickled
            classifier = HFCLIPClassifier(self._text_side.to(device).eval(), self._processor)
            classifier.set_classification_task(*get_classnames_and_templates(task))
            embeds: Any = classifier.zeroshot_weights
            self._text_embeds[task] = embeds
        return self._text_embeds[task].to(device)

    def logits(self, embeds: Tensor, task: str) -> Tensor:
        """Return s T e / |e|.

        Args:
            embeds: Image embeddings e, (..., embedding).
            task: Its name.

        Returns:
            (..., classes), in float64 where the device has it.
        """
        text = self._text(task, embeds.device)
        return self.logit_scale * F.normalize(embeds.to(text.dtype), dim=-1) @ text.T

    def embedding(self, logits: Tensor, task: str, dtype: torch.dtype) -> Tensor:
        """Return the shortest embedding that has some logits, T⁺ logits / s.

        Args:
            logits: (batch, classes).
            task: Its name.
            dtype: Of the embedding.

        Returns:
            (batch, embedding).

        Raises:
            ValueError: If there is none: there may be one as long as there are no more classes than dimensions.
        """
        text, wanted = self._text(task, logits.device), logits.clamp_min(LOWEST)
        embedding: Tensor = (wanted @ torch.linalg.pinv(text).T / self.logit_scale).to(dtype)
        missed = (self.logit_scale * embedding.to(text.dtype) @ text.T - wanted).abs().max().item()
        if missed > LOGIT_TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise ValueError(
                f"task {task!r}: no embedding of {text.shape[1]} dimensions has the combined logits of its "
                f"{text.shape[0]} classes (missed by {missed:.2g}); the reducers mean and sum always work"
            )
        return embedding

    def _text(self, task: str, device: torch.device) -> Tensor:
        exact = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
        return self.text_embeds(task, device).to(exact)


class _TextSide(nn.Module):
    """A CLIP model without its vision tower, as far as FusionBench's classifier looks at it."""

    def __init__(self, clip_model: Any) -> None:
        super().__init__()
        self.visual_projection = clip_model.visual_projection
        self.text_model = clip_model.text_model
        self.text_projection = clip_model.text_projection
        self.logit_scale = clip_model.logit_scale


def clip_head(modelpool: Any, clip_model: Any = None, text: bool = True) -> ClipHead:
    """Load the head that a pool's members were trained with.

    Args:
        modelpool: A FusionBench ``CLIPVisionModelPool``.
        clip_model: Path or hub name of a CLIP model, or a mapping with ``_target_``; None for the pool's own
            ``_pretrained_``.
        text: Whether text embeddings will be asked for.
    """
    if clip_model is None:
        loaded = modelpool.load_clip_model(PRETRAINED)
    elif isinstance(clip_model, Mapping):
        from hydra.utils import instantiate

        loaded = instantiate(dict(clip_model))
    else:
        from transformers import CLIPModel

        loaded = CLIPModel.from_pretrained(clip_model)
    return ClipHead(loaded, modelpool.load_processor() if text else None)


def check_clip_pool(modelpool: Any, clip_model: Any = None, text: bool = True) -> None:
    """Check, without loading anything, that `clip_head` can work.

    Raises:
        ValueError: If not; the message lists all that is missing.
    """
    problems = []
    if clip_model is None and not (hasattr(modelpool, "load_clip_model") and modelpool.has_pretrained):
        problems.append(
            f"the pool has no CLIP model {PRETRAINED!r} to take the visual projection from; name one, for example "
            "method.clip_model=openai/clip-vit-base-patch32"
        )
    if text and getattr(modelpool, "_processor", None) is None:
        problems.append("the pool has no processor, which a reducer other than mean and sum needs for the class names")
    if problems:
        raise ValueError("; ".join(problems))
