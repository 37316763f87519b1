"""The members of an ensemble, each kept on its own device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fusion_ensemble_plugin.offload import OffloadedMember
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.stacked import check_alike
from fusion_ensemble_plugin.streaming import WeightStream
from fusion_ensemble_plugin.transfer import torch_device


class Members(nn.ModuleList):
    """A ``ModuleList`` whose modules keep their devices if they were given any.

    Task pools move what wraps an ensemble to their own device; through ``nn.Module.to`` that would move every member.
    With a placement, members here take only the dtype of such a call. Without one, they move like any module.

    Args:
        models: The members, taken one by one: each is moved before the next is asked for. They are moved, not copied,
            except where two that share parameters go to different devices.
        placement: One device a member, or None, as a slice of members has it.
        offload: Where the members are kept that the placement offloads: "cpu" or "disk".

    Examples:
        >>> members = Members([nn.Linear(2, 2)], Placement(("cpu:0",)))
        >>> members.to("meta", torch.float64)[0].weight.device, members[0].weight.dtype
        (device(type='cpu'), torch.float64)
    """

    def __init__(
        self, models: Iterable[nn.Module], placement: Placement | None = None, offload: str | None = None
    ) -> None:
        super().__init__()
        self.placement = placement
        self._offloaded: dict[int, OffloadedMember] = {}
        self._streams: dict[str, WeightStream] = {}
        home: dict[int, torch.device] = {}
        try:
            for model in models:
                self.append(model if placement is None else self._placed(len(self), model, placement, offload, home))
                del model  # while the next one is loaded, nothing is left of this one but what is in its place
        except BaseException:
            self._modules.clear()  # the error's traceback keeps this object; it must not keep the members
            self._offloaded.clear()
            raise

    def at_work(self, index: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """Give a member with its weights on its device, and begin to fetch those of the one that follows it there."""
        return self._visiting(index, following) if self._offloaded else nullcontext(self[index])

    @contextmanager
    def _visiting(self, index: int, following: int | None) -> Iterator[nn.Module]:
        offloaded = self._offloaded.get(index)
        with offloaded.at_work(self._stream(index)) if offloaded else nullcontext(self[index]) as member:
            if following in self._offloaded:
                self._offloaded[following].prefetch(self._stream(following))
            yield member

    def subset(self, indices: Sequence[int]) -> Members:
        """Return some of the members, the same modules in the same places."""
        if self.placement is None:
            return Members([self[index] for index in indices], None)
        chosen = Members([], None)
        chosen.extend(self[index] for index in indices)
        devices = tuple(self.placement.devices[index] for index in indices)
        resting = tuple(place for place, index in enumerate(indices) if index in self.placement.offloaded)
        chosen.placement = replace(self.placement, devices=devices, offloaded=resting)
        chosen._offloaded = {place: self._offloaded[index] for place, index in enumerate(indices) if place in resting}
        chosen._streams = self._streams
        return chosen

    def check_stackable(self, groups: Iterable[Sequence[int]], names: Sequence[str]) -> None:
        """Check that the members of each group can run as one.

        Raises:
            ValueError: If some can't; names them.
        """
        if self._offloaded:
            raise ValueError(
                "executor=stacked keeps all weights on the device; it can't be used with offloaded members"
            )
        for group in groups:
            check_alike([self[index] for index in group], [names[index] for index in group])

    def _placed(
        self, index: int, model: nn.Module, placement: Placement, offload: str | None, home: dict[int, torch.device]
    ) -> nn.Module:
        """Move a member to its device, or put it to rest; copy it first if another one holds part of it elsewhere."""
        resting = index in placement.offloaded
        device = torch.device("cpu") if resting else torch_device(placement.devices[index])
        if any(resting or home[id(tensor)] != device for tensor in _tensors(model) if id(tensor) in home):
            model = deepcopy(model)
        model = model.to(device)
        # weights at rest are no one else's: they are at home where no other member is
        home.update((id(tensor), torch.device("meta") if resting else device) for tensor in _tensors(model))
        if resting:
            self._offloaded[index] = OffloadedMember(model, offload or "cpu")
        return model

    def _stream(self, index: int) -> WeightStream | None:
        worker = self.placement.devices[index] if self.placement else "cpu"
        if torch_device(worker).type == "cpu":
            return None
        if worker not in self._streams:
            self._streams[worker] = WeightStream(torch_device(worker))
        return self._streams[worker]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Members:
        if self.placement is None:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]
        become = _dtype_only(fn)
        for index, member in enumerate(self):
            if all(become(tensor.dtype) == tensor.dtype for tensor in _tensors(member)):
                continue
            member._apply(lambda tensor: tensor.to(become(tensor.dtype)))  # type: ignore[no-untyped-call]
            if index in self._offloaded:
                self._offloaded[index].settle()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the streams out of copies and pickles."""
        return {**self.__dict__, "_streams": {}}


def member_device(member: nn.Module) -> torch.device | None:
    """Return the device of a member's first parameter or buffer, or None if it has neither."""
    return next((tensor.device for tensor in _tensors(member)), None)


def _tensors(member: nn.Module) -> Iterator[Tensor]:
    return chain(member.parameters(), member.buffers())


def _dtype_only(fn: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], torch.dtype]:
    """Find out on empty tensors what ``fn`` does to a dtype, so that no weight goes through another device."""
    return cache(lambda dtype: fn(torch.empty(0, dtype=dtype)).dtype)
