"""Calling one member: with its weights in place, its input guarded, under autocast, and its errors named."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import nn

from fusion_ensemble_plugin.cache.outputs import OutputCache
from fusion_ensemble_plugin.cache.recall import Recall, Seen
from fusion_ensemble_plugin.groups import Group
from fusion_ensemble_plugin.guard import InputGuard, Inputs, SharedInputs
from fusion_ensemble_plugin.members import Members, member_device
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.stacked import Stack
from fusion_ensemble_plugin.transfer import device_of

MemberCall = Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""What is done with one member: ``call(index, member, args, kwargs)``."""


def forward(index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the member: what an ensemble's ``forward`` does with each."""
    del index
    return member(*args, **kwargs)


def calls_members_only(call: MemberCall) -> bool:
    """Say whether a call uses a member in no other way than by calling it: forwards, and ensembles' own methods.

    Generation's steps and parts of members do more; what they compute is not kept.
    """
    return call is forward or hasattr(getattr(call, "__self__", None), "run_members")


_stacking = Lock()  # two callers at once must not stack the same members twice


class MemberRunner:
    """Runs members and folds their outputs.

    Args:
        members: The members.
        names: Their names.
        weights: Their weights.
        autocast: The dtype under which they run; None for no autocast.
        stacked: Whether the members of one worker run as one.
        cache: What keeps the members' outputs; None keeps none.
        output_keys: The fields of them that are kept.

    Attributes:
        weights: The members' weights, with which their outputs are folded.
    """

    def __init__(
        self,
        members: Members,
        names: Sequence[str],
        weights: Sequence[float],
        autocast: torch.dtype | None,
        stacked: bool,
        cache: OutputCache | None = None,
        output_keys: Sequence[Hashable] | None = None,
    ) -> None:
        self._members = members
        self._names = names
        self.weights = weights
        self._dtype = autocast
        self._stacked = stacked
        self._cache = cache
        self._output_keys = output_keys
        self._stacks: dict[tuple[int, ...], Stack] = {}
        self._guards = [InputGuard() for _ in names]

    def run_group(self, call: MemberCall, group: Group, inputs: Inputs, fold: Fold) -> Fold:
        """Run the members of one worker one after another and fold their outputs as they come."""
        if self._stacked and self._cache is None and call is forward and len(group.members) > 1:
            return self._run_stacked(group, inputs, fold)
        shared = SharedInputs(inputs) if self._members.placement is None else SharedInputs(inputs).counted_apart()
        seen: Seen = {}
        for index, following in zip(group.members, (*group.members[1:], None)):
            if self._cache is None or not calls_members_only(call):
                output = self._run_member(call, index, following, shared)
            else:
                device = group.device or device_of(inputs)
                output = self._recalled(self._cache, call, index, device, shared, seen)
            fold.add(index, self._names[index], output, self.weights[index])
            del output  # it must not stay alive while the next member runs
        return fold

    def _run_stacked(self, group: Group, inputs: Inputs, fold: Fold) -> Fold:
        """Run the members of one worker as one."""
        names = [self._names[index] for index in group.members]
        try:
            stack = self._stack(group, names)
            with self._autocast(self._members[group.members[0]]):
                output = self._guards[group.members[0]].call(stack, ", ".join(names), SharedInputs(inputs))
        except Exception as error:
            add_note(error, f"raised by ensemble members {', '.join(map(repr, names))}, run as one on {group.worker}")
            raise
        fold.add_stack(group.members, names, output, [self.weights[index] for index in group.members])
        return fold

    def _stack(self, group: Group, names: Sequence[str]) -> Stack:
        """Return the group's stack, made anew when the members were changed."""
        with _stacking:
            if group.members not in self._stacks or not self._stacks[group.members].is_current:
                self._stacks.pop(group.members, None)  # its memory goes before the new one's comes
                self._stacks[group.members] = Stack([self._members[index] for index in group.members], names)
            return self._stacks[group.members]

    def subset(self, members: Members, names: Sequence[str], weights: Sequence[float]) -> MemberRunner:
        """Return a runner of other members, such as some of these, with the same options and the same cache."""
        return MemberRunner(members, names, weights, self._dtype, self._stacked, self._cache, self._output_keys)

    def dissolve_stacks(self) -> None:
        """Give each stacked member memory of its own again; the next run stacks them anew."""
        with _stacking:
            while self._stacks:
                self._stacks.popitem()[1].dissolve()

    def _run_member(self, call: MemberCall, index: int, following: int | None, inputs: SharedInputs) -> Any:
        name = self._names[index]
        try:
            with self._members.at_work(index, following) as member, self._autocast(member):
                return self._guards[index].call(lambda *args, **kwargs: call(index, member, args, kwargs), name, inputs)
        except Exception as error:
            placement = self._members.placement
            where = placement.devices[index] if placement else member_device(self._members[index])
            add_note(error, f"raised by ensemble member {name!r} (index {index}) on {where}")
            raise

    def _recalled(
        self,
        cache: OutputCache,
        call: MemberCall,
        index: int,
        device: torch.device | None,
        inputs: SharedInputs,
        seen: Seen,
    ) -> Any:
        """Run a call in which the member computes only what it has not computed before.

        The weights of an offloaded member are fetched only then, so there is no telling which follow.
        """
        member: Any = Recall(
            self._members[index],
            lambda given: self._run_member(forward, index, None, SharedInputs(given)),
            cache,
            device=device,
            autocast=self._dtype,
            output_keys=self._output_keys,
            seen=seen,
        )
        args, kwargs = inputs.inputs
        return call(index, member, args, kwargs)

    def _autocast(self, member: nn.Module) -> AbstractContextManager[object]:
        device = None if self._dtype is None else member_device(member)
        return nullcontext() if device is None else torch.autocast(device.type, self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the stacks out of copies and pickles; they are made on first use."""
        return {**self.__dict__, "_stacks": {}}
