"""The parallel ensemble: scatter the input, run the members, reduce their outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn

from fusion_ensemble_plugin.device_map import DeviceMap
from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.groups import Group, group_members, share_cores
from fusion_ensemble_plugin.guard import InputGuard, Inputs
from fusion_ensemble_plugin.members import Members, member_device
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.placement import Placement, resolve
from fusion_ensemble_plugin.plugins import executor_factory, make_reducer
from fusion_ensemble_plugin.reducer import Reducer
from fusion_ensemble_plugin.transfer import device_of, scatter, torch_device
from fusion_ensemble_plugin.weights import Weights, resolve_weights

MemberCall = Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""What is done with one member: ``call(index, member, args, kwargs)``."""

_starting = Lock()


class ParallelEnsemble(nn.Module):
    """Several models that answer as one: y(x) = reduce_i f_i(x), by default the mean.

    Members run at the same time, each on its device; each device folds the outputs of its members as they come, and one
    partial result a device is brought together.

    The output has the type that the members return (tensor, ``ModelOutput``, dict, list, tuple, named tuple, dataclass,
    at any depth). Floating tensors and floats are reduced, in float32 if the members are in half precision; other
    values pass through if all members agree; key-value caches are dropped. It comes back on ``output_device`` if given,
    else on the input's device if that is an accelerator, else on the first member's device.

    Args:
        models: The members; moved to their devices, not copied.
        device_map: Where each member goes; see `fusion_ensemble_plugin.placement.DeviceMap`. None leaves them where
            they are, one after another.
        names: The members' names; default "0", "1", ....
        reducer: A name (``python -m fusion_ensemble_plugin plugins`` lists them), a `Reducer`, a mapping with
            ``_target_``, or a function ``(members, *shape) -> (*shape)``.
        weights: One number a member, as a list or by name; default all 1. Members of weight 0 are not run.
        executor: ``"auto"`` (``"threads"`` on several devices or lanes, else ``"sequential"``), a name, or a factory.
        output_keys: Keep and move only these fields of the output.
        output_device: Where outputs come back.

    Raises:
        ValueError: If an argument is wrong; the message lists all that is.

    Examples:
        >>> ensemble = ParallelEnsemble([nn.Identity(), nn.ReLU()], device_map=["cpu:0", "cpu:1"])
        >>> ensemble(torch.tensor([-2.0, 4.0]))
        tensor([-1.,  4.])
    """

    default_reducer: Any = "mean"
    """What a variant changes: the reducer used if none is given."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        device_map: DeviceMap = None,
        *,
        names: Sequence[str] | None = None,
        reducer: str | Reducer | Callable[..., Any] | Mapping[str, Any] | None = None,
        weights: Weights = None,
        executor: str | Callable[..., Executor] = "auto",
        output_keys: Sequence[Hashable] | None = None,
        output_device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        models = list(models)
        self.names = check_names(names, len(models))
        self.reducer = make_reducer(self.default_reducer if reducer is None else reducer)
        self.member_weights = resolve_weights(weights, self.names)
        self.output_keys = None if output_keys is None else tuple(output_keys)
        self.output_device = None if output_device is None else torch_device(_one_device(output_device))
        self._executor_spec = executor
        executor_factory(executor)  # an unknown name is told before anything moves
        self._executor: tuple[Any, Executor] | None = None
        self._guards = [InputGuard() for _ in models]
        self.model_list = Members(models, resolve(device_map, self.names, [_bytes(model) for model in models]))

    @property
    def placement(self) -> Placement | None:
        """One device a member, or None if they stay where they are."""
        return self.model_list.placement

    @property
    def device(self) -> torch.device:
        """The device of the first member."""
        return member_device(self.model_list[0]) or torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first member's first floating parameter; torch's default if it has none."""
        floating = (p.dtype for p in self.model_list[0].parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def config(self) -> Any:
        """The first member's ``config``."""
        return self.model_list[0].config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all members on the same input and reduce their outputs.

        Raises:
            Exception: A failing member's own error, with a note that names the member and its device.
            TypeError: If an input cannot be moved to a member's device.
            ValueError: If the members' outputs do not fit together, naming field and members.
        """
        return self.run_members(_call, (args, kwargs))

    def run_members(self, call: MemberCall, inputs: Inputs, new_fold: Callable[[], Fold] | None = None) -> Any:
        """Run a call on every member, each where it is and all at the same time, and reduce what they return.

        Args:
            call: What is done with a member: ``call(index, member, args, kwargs)``, inputs on its device.
            inputs: Positional and keyword inputs, for every member the same.
            new_fold: Makes what takes in the outputs; default: a fold by this ensemble's reducer and output keys.
        """
        new_fold = new_fold or partial(Fold, self.reducer, self.output_keys)
        groups = group_members(self.model_list, self.member_weights)
        there = scatter(inputs, [group.device for group in groups])
        calls = {
            group.worker: partial(self._run_group, call, group, there[group.device], new_fold()) for group in groups
        }
        folds = self._executor_for(groups).run(calls)
        return self._reduce(folds, new_fold(), self._target(inputs, groups))

    def close(self) -> None:
        """End the workers; the next forward starts them again."""
        if self._executor is not None:
            self._executor[1].close()

    def _run_group(self, call: MemberCall, group: Group, inputs: Inputs, fold: Fold) -> Fold:
        """Run the members of one worker one after another and fold their outputs as they come."""
        for index in group.members:
            output = self._run_member(call, index, inputs)
            fold.add(index, self.names[index], output, self.member_weights[index])
            del output  # it must not stay alive while the next member runs
        return fold

    def _run_member(self, call: MemberCall, index: int, inputs: Inputs) -> Any:
        member, name = self.model_list[index], self.names[index]
        try:
            return self._guards[index].call(lambda *args, **kwargs: call(index, member, args, kwargs), name, inputs)
        except Exception as error:
            where = self.placement.devices[index] if self.placement else member_device(member)
            add_note(error, f"raised by ensemble member {name!r} (index {index}) on {where}")
            raise

    def _reduce(self, folds: Sequence[Fold], total: Fold, target: torch.device | None) -> Any:
        for fold in folds:
            if target is not None:
                fold.move(target)
            total.merge(fold)
        return total.lower()

    def _target(self, inputs: Inputs, groups: Sequence[Group]) -> torch.device | None:
        """Return where the output comes back."""
        given = device_of(inputs)
        if self.output_device is not None:
            return self.output_device
        if given is not None and given.type not in ("cpu", "meta"):
            return given
        return member_device(self.model_list[0]) or next((group.device for group in groups if group.device), None)

    def _executor_for(self, groups: Sequence[Group]) -> Executor:
        """Return the workers' executor, made on first use, and anew in a forked process, where threads are gone."""
        key = (tuple(group.worker for group in groups), os.getpid())
        with _starting:
            if self._executor is None or self._executor[0] != key:
                automatic = "threads" if self.placement is not None and len(groups) > 1 else "sequential"
                self._executor = (key, executor_factory(self._executor_spec, automatic)(share_cores(groups)))
            return self._executor[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running workers out of copies and pickles; they start again on first use."""
        return {**self.__dict__, "_executor": None}

    def extra_repr(self) -> str:
        """Name members, devices and reducer in ``repr``."""
        return f"names={self.names}, placement={self.placement}, reducer={type(self.reducer).__name__}"


def check_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the members' names.

    Raises:
        ValueError: If there are no members, or the names are not one distinct string each.
    """
    if count == 0:
        raise ValueError("an ensemble needs at least one member; got none")
    checked = tuple(str(i) for i in range(count)) if names is None else tuple(map(str, names))
    if len(checked) != count or len(set(checked)) != count:
        raise ValueError(f"names={list(checked)}: {count} members need {count} different names")
    return checked


def _call(index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    del index
    return member(*args, **kwargs)


def _one_device(device: str | torch.device) -> str:
    placement = resolve(str(device), ["output"], option="output_device")
    return placement.devices[0] if placement else "cpu:0"


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
