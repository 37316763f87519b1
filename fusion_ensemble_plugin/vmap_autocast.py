"""Autocast for the layers that ``torch.func.vmap`` takes apart before autocast sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fusion_ensemble_plugin.tree import map_leaves

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_PRODUCTS = (F.linear, torch.addmm, torch.baddbmm, torch.addbmm, torch.addmv)
_TAKEN_APART = frozenset([*_CONVOLUTIONS, *_PRODUCTS])


def vmap_autocast(device_type: str) -> AbstractContextManager[object]:
    """Let the autocast that is on for a type of device hold inside ``vmap``; do nothing if none is.

    vmap computes a linear layer as a product and a sum, and a convolution as one of another shape. Autocast lowers the
    product, but neither the sum nor that convolution: without this, both would come out in float32.

    Examples:
        >>> layer, weights = torch.nn.Linear(2, 3), {"weight": torch.ones(4, 3, 2), "bias": torch.ones(4, 3)}
        >>> run = lambda weights: torch.func.functional_call(layer, weights, torch.ones(5, 2))
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     without = torch.func.vmap(run)(weights).dtype
        ...     with vmap_autocast("cpu"):
        ...         print(without, torch.func.vmap(run)(weights).dtype)
        torch.float32 torch.bfloat16
    """
    return _Lowering(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else nullcontext()


class _Lowering(TorchFunctionMode):
    """Casts the inputs of what vmap takes apart, as autocast does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _TAKEN_APART:
            args, kwargs = map_leaves(self._lowered, (tuple(args), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _lowered(self, leaf: Any) -> Any:
        lowers = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
        return leaf.to(self._dtype) if lowers else leaf
