"""Members with a head of their own each: combined below the head, then given to the head of the task.

FusionBench's image pools mark what the models of a pool share, and what its methods therefore merge, by
``_fusion_bench_target_modules``: a merged model has the backbone of all and the head of one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from fusion_ensemble_plugin.absent import Absent
from fusion_ensemble_plugin.members import Members, member_device
from fusion_ensemble_plugin.transfer import move

TARGETS = "_fusion_bench_target_modules"
HOST_POOLS = "fusion_bench.modelpool."
"""Where the functions come from that FusionBench's image pools set as a model's ``forward``: logits alone."""


class TaskHeads(nn.Module):
    """Chooses one member's head and runs it on what all members have in common.

    The choice is a FusionBench ``SwitchModule``, which its task pools set to the name of the task that they evaluate;
    before that it is the first member.

    Args:
        members: The members; their heads stay where they are.
        names: Their names.
        target: The name of the submodule that all have in common.
    """

    def __init__(self, members: Members, names: Sequence[str], target: str) -> None:
        super().__init__()
        from fusion_ensemble_plugin.task_choice import TaskChoice  # imports FusionBench, whose models have targets

        self.task = TaskChoice(names)
        self._members = (members,)  # in a tuple: they are the ensemble's submodules, not this one's
        self._target = target

    def below(self, index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run what a member has in common with the others: the call that an ensemble makes for each."""
        del index
        return member.get_submodule(self._target)(*args, **kwargs)

    def forward(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the chosen head.

        Args:
            features: What the part below gives.
            *args: What the model was called with.
            **kwargs: The same, by name.
        """
        (members,) = self._members
        with members.at_work(self.task.index) as member:
            device = member_device(member)
            if device is not None:
                features, args, kwargs = move((features, args, kwargs), device, "input")
            head = _with_output(member, self._target.split("."), features)
            output = type(member).forward(head, *args, **kwargs)
        return output.logits if returns_logits(member) else output


def task_heads(members: Members, names: Sequence[str]) -> TaskHeads | None:
    """Return what chooses among the members' heads; None if they have none of their own, or all the same.

    Raises:
        ValueError: If the members have in common more than one submodule, or not the same ones, or if their
            ``forward`` is none of their class's; or if other ranks hold some of them, whose heads are not known here.
    """
    here = [member for member in members if not isinstance(member, Absent)]
    targets: list[Any] = [getattr(member, TARGETS, None) for member in here]
    if not any(targets):
        return None
    if len(here) < len(members):
        common = ", ".join(map(str, next(filter(None, targets))))
        raise ValueError(
            f"models that have {common} in common, and perhaps a head each, can't be spread over ranks yet: run them "
            "with member_parallel=false (device_map and offload spread them there)"
        )
    if targets.count(targets[0]) != len(targets):
        listed = ", ".join(f"{name!r}: {target}" for name, target in zip(names, targets))
        raise ValueError(f"members name different target modules to combine ({listed})")
    kinds = [_head_of(member, targets[0]) for member in members]
    if kinds.count(kinds[0]) == len(kinds):
        return None
    if len(targets[0]) != 1:
        raise ValueError(f"members with heads of their own must have one submodule in common, not {targets[0]}")
    foreign = [n for n, member in zip(names, members) if "forward" in vars(member) and not returns_logits(member)]
    if foreign:
        raise ValueError(f"members {', '.join(map(repr, foreign))} have heads of their own and a forward of their own")
    return TaskHeads(members, names, targets[0][0])


def returns_logits(member: nn.Module) -> bool:
    """Say whether a ``forward`` was replaced by one that returns the bare logits, as FusionBench's image pools do."""
    own = vars(member).get("forward")
    return getattr(own, "returns_logits", False) or str(getattr(own, "__module__", "")).startswith(HOST_POOLS)


def _head_of(member: nn.Module, targets: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Return by what heads differ: shapes outside of the targets, and what the classes are called."""
    shared = tuple(f"{target}." for target in targets)
    shapes = {name: p.shape for name, p in member.named_parameters() if not name.startswith(shared)}
    return shapes, getattr(getattr(member, "config", None), "id2label", None)


def _with_output(module: nn.Module, path: Sequence[str], output: Any) -> nn.Module:
    """Return a module that shares all with this one but the submodule at a path, which returns an output instead."""
    name, *rest = path
    inner = _with_output(module.get_submodule(name), rest, output) if rest else _Given(output)
    other = copy.copy(module)
    other.__dict__["_modules"] = {**module._modules, name: inner}
    return other


class _Given(nn.Module):
    """Returns what it was made with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output
