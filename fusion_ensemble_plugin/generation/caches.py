"""The caches of all members, handled as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache, QuantizedLayer
from transformers.generation.utils import ALL_CACHE_NAMES

_RENAMED = {"past_buckets_states": "past_key_values", "mems": "past_key_values"}
"""Output fields whose caches transformers' loop hands back under another name (Reformer, XLNet)."""


class MemberCaches:
    """One cache a member: what transformers' decoding loop reorders, crops and asks for its length.

    Each cache stays on its member's device and is of the class that the member's own ``generate`` would use. It lives
    as long as the call that made it, or as the ``past_key_values`` of an output that the caller keeps.

    Args:
        held: Member index to the keyword argument by which the member takes its cache; empty where it makes its own.

    Examples:
        >>> from transformers import DynamicCache
        >>> caches = MemberCaches({0: {"past_key_values": DynamicCache()}, 1: {"past_key_values": DynamicCache()}})
        >>> for index in (0, 1):
        ...     _ = caches.of(index)["past_key_values"].update(torch.rand(2, 1, 5, 4), torch.rand(2, 1, 5, 4), 0)
        >>> caches.crop(3)
        >>> caches.get_seq_length()
        3
    """

    is_compileable = False
    """Keeps transformers from compiling the loop's calls: they run several modules, in threads."""

    def __init__(self, held: Mapping[int, dict[str, Any]]) -> None:
        self._held = dict(held)

    @property
    def indices(self) -> frozenset[int]:
        """The members that have a cache here."""
        return frozenset(self._held)

    def of(self, index: int) -> dict[str, Any]:
        """Return the keyword argument that gives a member its cache."""
        return self._held[index]

    def keep(self, index: int, output: Mapping[str, Any]) -> None:
        """Take over the cache that a member returned, which may be another object than it was given."""
        name = next((name for name in ALL_CACHE_NAMES if output.get(name) is not None), None)
        if name is not None:
            self._held[index] = {_RENAMED.get(name, name): output[name]}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens the caches hold; they all hold the same, and some kinds cannot tell."""
        for _, cache in self._all():
            try:
                return int(cache.get_seq_length(layer_idx))
            except (AttributeError, ValueError):
                continue  # not transformers' class, or one of linear attention alone, which counts no tokens
        return 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Bring the rows into the order of the surviving beams, ``beam_idx`` of shape (batch * beams,).

        Raises:
            TypeError: If a cache cannot be reordered.
        """
        for index, cache in self._all():
            if not can_be_reordered(cache):
                raise TypeError(f"the cache of member {index}, of type {type(cache).__name__}, cannot follow beams")
        self._each("reorder_cache", beam_idx)

    def crop(self, max_length: int) -> None:
        """Forget all but the first ``max_length`` tokens."""
        self._each("crop", max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._each("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows, ``indices`` of shape (rows,)."""
        self._each("batch_select_indices", indices)

    def reset(self) -> None:
        """Forget all tokens."""
        self._each("reset")

    def _all(self) -> Iterator[tuple[int, Any]]:
        return ((index, cache) for index, held in self._held.items() for cache in held.values())

    def _each(self, method: str, *args: Any) -> None:
        for index, cache in self._all():
            if not hasattr(cache, method):
                raise TypeError(f"the cache of member {index}, of type {type(cache).__name__}, has no {method}")
            getattr(cache, method)(*args)


def can_be_reordered(cache: Any) -> bool:
    """Say whether beam search can follow its beams in a cache.

    Not in one of a model's own kind, and not in a quantized one: its `reorder_cache` leaves the quantized part as it
    is.
    """
    if isinstance(cache, EncoderDecoderCache):
        return can_be_reordered(cache.self_attention_cache) and can_be_reordered(cache.cross_attention_cache)
    return isinstance(cache, Cache) and not any(isinstance(layer, QuantizedLayer) for layer in cache.layers)
