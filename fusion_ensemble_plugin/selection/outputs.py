"""Members that run once a batch: their outputs are kept while one ensemble is combined in many ways."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.fields import kept_fields
from fusion_ensemble_plugin.groups import Group, group_members
from fusion_ensemble_plugin.guard import Inputs
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.runner import MemberCall, forward
from fusion_ensemble_plugin.selection.batches import Budget, batch_bytes
from fusion_ensemble_plugin.tree import flatten, map_leaves


class Answers:
    """Members' outputs by what they were given: the content of the input, to the last bit.

    Args:
        budget: Memory for outputs, on the members' devices; what exceeds it is not kept.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: dict[Hashable, dict[int, Any]] = {}

    def to(self, call: MemberCall, inputs: Inputs) -> dict[int, Any] | None:
        """Return what members have answered to an input, by index, to be added to.

        None stands for calls that are no plain forward, and inputs that need a gradient or are no plain data.
        """
        key = _content(call, inputs)
        return None if key is None else self._kept.setdefault(key, {})

    def keep(self, answers: dict[int, Any], index: int, output: Any) -> None:
        """Add a member's answer, if it can be kept."""
        size = _bytes(output)
        if size is not None and self._budget.take(size):
            answers[index] = _copy(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Answers:
        """Serve the copies of an ensemble too, which some task pools make."""
        return self


class KeepsOutputs(ParallelEnsemble):
    """What is added to an ensemble of any class while its members' outputs are kept; made by `outputs_kept`."""

    _answers: Answers

    def run_members(self, call: MemberCall, inputs: Inputs, new_fold: Callable[[], Fold] | None = None) -> Any:
        """Run a call on every member that has not answered this input yet, and reduce what all return."""
        answers = self._answers.to(call, inputs)
        if answers is None:
            return super().run_members(call, inputs, new_fold)
        groups = group_members(self.model_list, self.member_weights)
        if all(index in answers for group in groups for index in group.members):
            return self._reduced(answers, inputs, groups, new_fold or partial(Fold, self.reducer, self.output_keys))

        def once(
            ensemble: KeepsOutputs, index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if index in answers:
                return _copy(answers[index])
            output = kept_fields(call(index, member, args, kwargs), ensemble.output_keys)
            ensemble._answers.keep(answers, index, output)
            return output

        return super().run_members(MethodType(once, self), inputs, new_fold)  # bound, as an ensemble's own calls are

    def _reduced(
        self, answers: Mapping[int, Any], inputs: Inputs, groups: Sequence[Group], new_fold: Callable[[], Fold]
    ) -> Any:
        """Reduce what is kept as workers do, but without them: no member's weights are fetched for it."""
        folds = []
        for group in groups:
            fold = new_fold()
            for index in group.members:  # copies, as who gets an output may write into it
                fold.add(index, self.names[index], _copy(answers[index]), self.member_weights[index])
            folds.append(fold)
        return self._reduce(folds, new_fold(), self._target(inputs, groups))


@contextmanager
def outputs_kept(ensemble: ParallelEnsemble, budget: Budget) -> Iterator[None]:
    """Let an ensemble's members run once for each input; on leaving, what was kept is let go.

    Args:
        ensemble: Of any class, which is changed for the time.
        budget: Memory for outputs.
    """
    cls = type(ensemble)
    ensemble.__class__ = _keeping(cls)  # type: ignore[arg-type]  # classes are hashable
    ensemble._answers = Answers(budget)  # type: ignore[assignment]
    try:
        yield
    finally:
        ensemble.__class__ = cls
        del ensemble._answers


@cache
def _keeping(cls: type[ParallelEnsemble]) -> type[ParallelEnsemble]:
    return type(f"Keeping{cls.__name__}", (KeepsOutputs, cls), {"__module__": __name__})


def _content(call: MemberCall, inputs: Inputs) -> Hashable | None:
    """Return what tells this input from all others; None if nothing does."""
    if call is not forward and not isinstance(getattr(call, "__self__", None), ParallelEnsemble):
        return None
    leaves, structure = flatten(inputs)
    parts: list[Hashable] = [getattr(call, "__name__", ""), tuple(structure.paths())]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.requires_grad or leaf.layout is not torch.strided:
                return None
            parts.append((leaf.dtype, tuple(leaf.shape), _digest(leaf)))
        elif isinstance(leaf, (int, float, str, type(None))):
            parts.append((type(leaf), leaf))
        else:
            return None
    return tuple(parts)


def _digest(tensor: Tensor) -> bytes:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    flat = plain.detach().cpu().contiguous().reshape(-1)
    return xxhash.xxh3_128(flat.view(torch.uint8).numpy().data).digest()


def _bytes(output: Any) -> int | None:
    """Return an output's memory; None if it cannot be kept."""
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in flatten(output)[0]):
        return None
    return batch_bytes(output)


def _copy(output: Any) -> Any:
    return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
