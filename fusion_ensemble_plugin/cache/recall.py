"""A member as others see it while its outputs are kept: a call first asks whether it has been answered before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_ensemble_plugin.cache.content import Content, repeatable, settings
from fusion_ensemble_plugin.cache.outputs import OutputCache, key_of
from fusion_ensemble_plugin.fields import kept_fields
from fusion_ensemble_plugin.tree import flatten, map_leaves

if TYPE_CHECKING:
    from fusion_ensemble_plugin.guard import Inputs

Seen = dict[tuple[tuple[int, int], ...], tuple[str, list[Any]]]
"""Digests of inputs by their identity, with the inputs: an id must not be taken again."""

_DATA = (Tensor, bool, int, float, str, type(None))


class Recall:
    """Answers in a member's place what it has answered before; else the member computes, and its answer is kept.

    Args:
        member: The member, with its weights wherever they are.
        compute: Calls the member where it works, with a tuple of positional and a dict of keyword inputs.
        cache: What keeps the answers.
        device: Where the member computes.
        autocast: The dtype under which it is run.
        output_keys: The fields that are asked for.
        seen: Digests of inputs that other members were given too; shared by the members of one worker for one batch.
    """

    def __init__(
        self,
        member: nn.Module,
        compute: Callable[[Inputs], Any],
        cache: OutputCache,
        *,
        device: torch.device | None,
        autocast: torch.dtype | None,
        output_keys: Any,
        seen: Seen,
    ) -> None:
        self._member = member
        self._compute = compute
        self._cache = cache
        self._device = device
        self._context = [*settings(device, autocast), repr(output_keys)]
        self._output_keys = output_keys
        self._seen = seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the member's answer, of which only the fields that are asked for are kept."""
        content = self._content((args, kwargs))
        if content is None:
            return self._compute((args, kwargs))
        if reason := repeatable(self._member):
            self._cache.tell(f"a {type(self._member).__name__}'s outputs are not kept: {reason}")
            return self._compute((args, kwargs))
        key = key_of([*self._context, Content().feed(self._member).hexdigest(), content])
        try:
            return self._here(self._cache.get(key))
        except KeyError:
            pass
        drawn = torch.get_rng_state()
        output = kept_fields(self._compute((args, kwargs)), self._output_keys)
        if torch.equal(drawn, torch.get_rng_state()):  # else the next answer would be another one
            self._cache.put(key, output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def _content(self, inputs: Inputs) -> str | None:
        """Return the digest of the input; None if it is no plain data, or wants a gradient."""
        leaves, structure = flatten(inputs)
        if any(not isinstance(leaf, _DATA) or (isinstance(leaf, Tensor) and _special(leaf)) for leaf in leaves):
            return None
        same = tuple((id(leaf), _version(leaf)) for leaf in leaves)
        if same not in self._seen:
            content = Content().feed([*structure.paths()])
            for leaf in leaves:
                content.feed(leaf)
            self._seen[same] = (content.hexdigest(), leaves)
        return self._seen[same][0]

    def _here(self, output: Any) -> Any:
        """Bring an answer to where the member would have given it."""
        if self._device is None or self._device.type == "cpu":
            return output
        return map_leaves(lambda leaf: leaf.to(self._device) if isinstance(leaf, Tensor) else leaf, output)


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0


def _special(tensor: Tensor) -> bool:
    return tensor.requires_grad or tensor.is_meta or tensor.layout is not torch.strided
