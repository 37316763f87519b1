"""The parallel ensemble: scatter the input, run the members, reduce their outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion_ensemble_plugin.absent import Absent
from fusion_ensemble_plugin.cache.outputs import OutputCache
from fusion_ensemble_plugin.device_map import DeviceMap
from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.fields import checked_keys, kept_fields
from fusion_ensemble_plugin.groups import Group, group_members
from fusion_ensemble_plugin.guard import Inputs
from fusion_ensemble_plugin.heads import task_heads
from fusion_ensemble_plugin.members import Members, member_device
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.placement import Placement, resolve
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducer import ListReducer, Reducer, reduce_tensors, weight_rule
from fusion_ensemble_plugin.runner import MemberCall, MemberRunner, forward
from fusion_ensemble_plugin.shared_config import shared
from fusion_ensemble_plugin.sizes import module_bytes
from fusion_ensemble_plugin.transfer import device_of, scatter, torch_device
from fusion_ensemble_plugin.weights import Weights, resolve_weights
from fusion_ensemble_plugin.workers import Workers


class ParallelEnsemble(nn.Module):
    """Several models that answer as one: y(x) = reduce_i f_i(x), by default the mean.

    Members run at the same time, each on its device; each device folds the outputs of its members as they come, and one
    partial result a device is brought together.

    The output has the type that the members return (tensor, ``ModelOutput``, dict, list, tuple, named tuple, dataclass,
    at any depth). Floating tensors and floats are reduced, in float32 if the members are in half precision; other
    values pass through if all members agree; key-value caches are dropped. It comes back on ``output_device`` if given,
    else on the input's device if that is an accelerator, else on the first member's device.

    Args:
        models: The members; moved to their devices, not copied. Anything with a length is taken one by one if
            ``device_map`` is a placement: each is moved before the next is asked for.
        device_map: Where each member goes: see `fusion_ensemble_plugin.device_map.DeviceMap`, or a `Placement`. None
            leaves them where they are, one after another.
        names: The members' names; default "0", "1", ....
        reducer: A name (``python -m fusion_ensemble_plugin plugins`` lists them), a `Reducer`, a mapping with
            ``_target_``, or a function ``(members, *shape) -> (*shape)``.
        weights: One number a member, as a list or by name; default all 1. Members of weight 0 are not run.
        executor: ``"auto"`` (``"threads"`` on several devices or lanes, else ``"sequential"``), a name, or a factory.
        output_keys: Keep and move only these fields of the output.
        output_device: Where outputs come back.
        offload: Where members are kept that the placement offloads: "cpu" or "disk".
        autocast: Run members under autocast to this dtype.
        compile: Compile each member with ``torch.compile``: True, or a mapping of its options.
        cache: What keeps members' outputs, so that no member computes the same twice; see
            `fusion_ensemble_plugin.cache.outputs.make_cache`. Stacked members then run one by one.

    Raises:
        ValueError: If an argument is wrong; the message lists all that is.

    Examples:
        >>> ensemble = ParallelEnsemble([nn.Identity(), nn.ReLU()], device_map=["cpu:0", "cpu:1"])
        >>> ensemble(torch.tensor([-2.0, 4.0]))
        tensor([-1.,  4.])
    """

    default_reducer: Any = "mean"
    """What a variant changes: the reducer used if none is given, written in any of the ways of ``reducer``."""

    def __init__(
        self,
        models: Iterable[nn.Module],
        device_map: DeviceMap | Placement = None,
        *,
        names: Sequence[str] | None = None,
        reducer: str | Reducer | Callable[..., Any] | Mapping[str, Any] | None = None,
        weights: Weights = None,
        executor: str | Callable[..., Executor] = "auto",
        output_keys: Sequence[Hashable] | None = None,
        output_device: str | torch.device | None = None,
        offload: str | None = None,
        autocast: torch.dtype | None = None,
        compile: bool | Mapping[str, Any] = False,
        cache: OutputCache | None = None,
    ) -> None:
        super().__init__()
        settled = device_map is None or isinstance(device_map, Placement)
        if not (settled and isinstance(models, Sized)):  # else members can be taken, and placed, one by one
            models = list(models)
        self.names = check_names(names, len(models))
        self.reducer_spec = type(self).default_reducer if reducer is None else reducer
        self._reducer = make_reducer(self.reducer_spec)
        self.member_weights = resolve_weights(weights, self.names, weight_rule(self._reducer))
        self.output_keys = checked_keys(output_keys)
        self.output_device = None if output_device is None else torch_device(_one_device(output_device))
        self.autocast = autocast
        self.cache = cache
        self._compile_options = compile_options(compile)
        self._workers = Workers(executor, compiled=self._compile_options is not None)
        sizes = None if settled else [module_bytes(model) for model in models]
        placement = resolve(device_map, self.names, sizes, offload=None if settled else offload)
        self.model_list = Members(models, placement, offload)
        stacked = self._workers.stacks_members
        self._runner = MemberRunner(
            self.model_list, self.names, self.member_weights, autocast, stacked, cache, self.output_keys
        )
        if stacked:
            groups = group_members(self.model_list, self.member_weights)
            self.model_list.check_stackable([group.members for group in groups], self.names)
        self.task_heads = task_heads(self.model_list, self.names)
        self._compile()

    @property
    def reducer(self) -> Reducer:
        """What combines the members' outputs: what was asked for, or a subclass's own `_aggregate_tensors`."""
        return ListReducer(self._aggregate_tensors) if overrides_aggregation(type(self)) else self._reducer

    @property
    def placement(self) -> Placement | None:
        """One device a member, or None if they stay where they are."""
        return self.model_list.placement

    @property
    def device(self) -> torch.device:
        """The device on which the first member computes."""
        if self.placement is not None:
            return torch_device(self.placement.devices[0])
        return member_device(self.model_list[0]) or torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first member's first floating parameter; torch's default if it has none."""
        floating = (p.dtype for p in self.model_list[0].parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def _present(self) -> list[Any]:
        """The members that this process holds."""
        return [member for member in self.model_list if not isinstance(member, Absent)]

    @property
    def config(self) -> Any:
        """The members' ``config``: read from the first, written to all; see `SharedConfig`."""
        return shared(self._present, "config")

    @property
    def generation_config(self) -> Any:
        """The members' ``generation_config``, in the same way."""
        return shared(self._present, "generation_config")

    @property
    def name_or_path(self) -> str:
        """Where the first member comes from: lm-eval loads a language model's tokenizer from there."""
        return str(self._present[0].name_or_path)

    @property
    def train_preprocess(self) -> Any:
        """The first member's way to prepare images for training, as OpenCLIP encoders have it."""
        return self._present[0].train_preprocess

    @property
    def val_preprocess(self) -> Any:
        """The first member's way to prepare images for evaluation."""
        return self._present[0].val_preprocess

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the weights of each member that ties any."""
        for member in self.model_list:
            if callable(tie := getattr(member, "tie_weights", None)):
                tie(*args, **kwargs)

    def can_generate(self) -> bool:
        """Say whether the members are language models that can `generate` together."""
        from fusion_ensemble_plugin.generation import can_generate

        return can_generate(self.model_list)

    def generate(self, *args: Any, reducer: Any = None, **kwargs: Any) -> Any:
        """Generate token sequences as a Hugging Face model does, all members deciding together on each token.

        See `fusion_ensemble_plugin.generation.decode.generate`.
        """
        from fusion_ensemble_plugin.generation import generate  # transformers' decoding costs 2 s to import

        return generate(self, *args, reducer=reducer, **kwargs)

    def save_pretrained(self, path: str | Path, push_to_hub: bool = False) -> None:
        """Save the members and how they are combined to a folder, all of it or nothing.

        See `fusion_ensemble_plugin.saving.write.save`.
        """
        from fusion_ensemble_plugin.saving import save

        save(self, path, push_to_hub)

    @classmethod
    def from_pretrained(cls, path: str | Path, device_map: DeviceMap | Placement = None, **options: Any) -> Any:
        """Load a saved ensemble from a folder, or from a repository on the Hugging Face hub.

        See `fusion_ensemble_plugin.saving.read.load`.

        Returns:
            An ensemble of the class that was saved, which is this one or one that comes from it.
        """
        from fusion_ensemble_plugin.saving import load

        return load(cls, path, device_map, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all members on the same input and reduce their outputs.

        Members with a head of their own each are combined below it: see `fusion_ensemble_plugin.heads`.

        Raises:
            Exception: A failing member's own error, with a note that names the member and its device.
            TypeError: If an input cannot be moved to a member's device.
            ValueError: If the members' outputs do not fit together, naming field and members.
        """
        if self.task_heads is None:
            return self.run_members(forward, (args, kwargs))
        features = self.run_members(self.task_heads.below, (args, kwargs), partial(Fold, self.reducer))
        return kept_fields(self.task_heads(features, *args, **kwargs), self.output_keys)

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
        calls = [partial(self._runner.run_group, call, group, there[group.device], new_fold()) for group in groups]
        automatic = "threads" if self.placement is not None and len(groups) > 1 else "sequential"
        folds = self._workers.run(groups, calls, inputs, automatic)
        return self._reduce(folds, new_fold(), self._target(inputs, groups))

    def recombine(self, *, weights: Weights = None, reducer: Any = None) -> None:
        """Combine the same members otherwise, from the next forward on; what is not given stays as it is.

        Args:
            weights: As in the constructor.
            reducer: As in the constructor.

        Raises:
            ValueError: If an argument is wrong, or the weights are none for the reducer; nothing is changed then.
        """
        spec = self.reducer_spec if reducer is None else reducer
        made = self._reducer if reducer is None else make_reducer(reducer)
        weights = self.member_weights if weights is None else weights
        self.member_weights = resolve_weights(weights, self.names, weight_rule(made))
        self.reducer_spec, self._reducer = spec, made
        self._runner.weights = self.member_weights

    def subset(self, members: Sequence[int], *, weights: Weights = None, reducer: Any = None) -> ParallelEnsemble:
        """Return an ensemble of some of the members, which are shared: modules, workers and cache are the same.

        Args:
            members: Their indices.
            weights: One number a member of the subset; None for those that they have here.
            reducer: As in the constructor; None for this one's.

        Raises:
            ValueError: If an argument is wrong.
        """
        chosen: ParallelEnsemble = type(self).__new__(type(self))
        vars(chosen).update(vars(self))  # not copied: a copy would take stacks apart and compile anew
        names = check_names([self.names[index] for index in members], len(members))
        rest = self.model_list.subset(members)
        own = [self.member_weights[index] for index in members]
        vars(chosen).update(_modules={**self._modules, "model_list": rest}, names=names, member_weights=own)
        chosen._runner = self._runner.subset(rest, names, own)
        chosen.recombine(weights=own if weights is None else weights, reducer=reducer)
        return chosen

    def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
        """Combine the members' tensors: the one method that a variant may override, as in FusionBench's ensembles.

        An override gets one tensor of every member whose weight is not 0, in the order of the members, on the device of
        the result, in at least float32. It is called once for each floating field of the output. What it makes of
        `member_weights` is its own affair; this one gives them to the reducer.
        """
        weights = [weight for weight in self.member_weights if weight != 0]
        result: Tensor = reduce_tensors(self._reducer, outputs, weights)
        return result

    def close(self) -> None:
        """End the workers; the next forward starts them again."""
        self._workers.close()

    def _compile(self) -> None:
        """Compile the members in place, so that their names and types stay as they are."""
        if self._compile_options is not None:
            for member in self.model_list:
                member.compile(**self._compile_options)

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

    def __getstate__(self) -> dict[str, Any]:
        """Take stacked members apart: each one's tensor would be pickled with the memory of the whole stack."""
        self._runner.dissolve_stacks()
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile anew: what was compiled is not copied with a module."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile()

    def extra_repr(self) -> str:
        """Name members, devices and reducer in ``repr``."""
        return f"names={self.names}, placement={self.placement}, reducer={type(self.reducer).__name__}"


def overrides_aggregation(variant: type[ParallelEnsemble]) -> bool:
    """Say whether a subclass combines outputs by an `_aggregate_tensors` of its own, and not by a reducer."""
    return variant._aggregate_tensors is not ParallelEnsemble._aggregate_tensors


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


def compile_options(compile: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of ``torch.compile``, or None if members are not to be compiled.

    Raises:
        ValueError: If it is neither true, false nor a mapping.

    Examples:
        >>> compile_options(True), compile_options({"mode": "reduce-overhead"}), compile_options(False)
        ({}, {'mode': 'reduce-overhead'}, None)
    """
    if isinstance(compile, Mapping):
        return dict(compile)
    if not isinstance(compile, bool):
        raise ValueError(f"compile={compile!r}: needed is true, false or a mapping of torch.compile's options")
    return {} if compile else None


def _one_device(device: str | torch.device) -> str:
    placement = resolve(str(device), ["output"], option="output_device")
    return placement.devices[0] if placement else "cpu:0"
