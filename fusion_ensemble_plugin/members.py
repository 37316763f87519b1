"""The members of an ensemble, each kept on its own device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn

from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.transfer import torch_device


class Members(nn.ModuleList):
    """A ``ModuleList`` whose modules keep their devices if they were given any.

    Task pools move what wraps an ensemble to their own device; through ``nn.Module.to`` that would move every member.
    With a placement, members here take only the dtype of such a call. Without one, they move like any module.

    Args:
        models: The members. They are moved, not copied, except where two that share parameters go to different devices.
        placement: One device a member, or None.

    Examples:
        >>> members = Members([nn.Linear(2, 2)], Placement(("cpu:0",)))
        >>> members.to("meta", torch.float64)[0].weight.device, members[0].weight.dtype
        (device(type='cpu'), torch.float64)
    """

    def __init__(self, models: Sequence[nn.Module], placement: Placement | None) -> None:
        super().__init__(models if placement is None else _placed(models, placement))
        self.placement = placement

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Members:
        super()._apply(  # type: ignore[no-untyped-call]
            fn if self.placement is None else _dtype_only(fn), recurse
        )
        return self


def member_device(member: nn.Module) -> torch.device | None:
    """Return the device of a member's first parameter or buffer, or None if it has neither."""
    return next((tensor.device for tensor in chain(member.parameters(), member.buffers())), None)


def _placed(models: Sequence[nn.Module], placement: Placement) -> list[nn.Module]:
    """Move each member to its device, copying first what another member holds on a different one."""
    home: dict[int, torch.device] = {}
    placed: list[nn.Module] = []
    for model, device in zip(models, map(torch_device, placement.devices)):
        tensors = [id(tensor) for tensor in chain(model.parameters(), model.buffers())]
        if any(home.get(tensor, device) != device for tensor in tensors):
            model = deepcopy(model)
        model = model.to(device)
        home.update((id(tensor), device) for tensor in chain(model.parameters(), model.buffers()))
        placed.append(model)
    return placed


def _dtype_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Find out on empty tensors what ``fn`` does to a dtype, so that no weight goes through another device."""
    dtypes: dict[torch.dtype, torch.dtype] = {}

    def convert(tensor: Tensor) -> Tensor:
        if tensor.dtype not in dtypes:
            dtypes[tensor.dtype] = fn(torch.empty(0, dtype=tensor.dtype)).dtype
        return tensor.to(dtypes[tensor.dtype])

    return convert
