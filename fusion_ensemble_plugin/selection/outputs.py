"""Members that run once a batch: their outputs are kept while one ensemble is combined in many ways."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.fields import kept_fields
from fusion_ensemble_plugin.guard import Inputs
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.runner import MemberCall, forward
from fusion_ensemble_plugin.selection.batches import Budget, batch_bytes
from fusion_ensemble_plugin.tree import flatten, map_leaves


class KeptOutputs:
    """What stands in the place of an ensemble's `run_members`: the same, but members are run once for the same input.

    An input is the same if its tensors are the very same objects, unchanged since; so results are exact. Inputs that
    are not known to be the same, tensors that need a gradient, and calls that are no plain forward are passed through.

    Args:
        ensemble: Whose members are run.
        budget: Memory for outputs, on the members' devices; outputs that exceed it are not kept.
    """

    def __init__(self, ensemble: ParallelEnsemble, budget: Budget) -> None:
        self._run_members = ensemble.run_members
        self._output_keys = ensemble.output_keys
        self._budget = budget
        self._kept: dict[Hashable, tuple[Inputs, dict[int, Any]]] = {}

    def __call__(self, call: MemberCall, inputs: Inputs, new_fold: Callable[[], Fold] | None = None) -> Any:
        """Run a call on every member that has not answered this input yet, and reduce what all return."""
        key = _identity(call, inputs)
        if key is None:
            return self._run_members(call, inputs, new_fold)
        # the inputs are kept too: while they live, no other tensor has their identity
        _, answers = self._kept.setdefault(key, (inputs, {}))

        def once(index: int, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if index in answers:
                return _copy(answers[index])  # who gets it may write into it
            output = kept_fields(call(index, member, args, kwargs), self._output_keys)
            size = _bytes(output)
            if size is not None and self._budget.take(size):
                answers[index] = _copy(output)
            return output

        return self._run_members(once, inputs, new_fold)

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptOutputs:
        """Serve the copies of the ensemble too, which some task pools make."""
        return self


@contextmanager
def outputs_kept(ensemble: ParallelEnsemble, budget: Budget) -> Iterator[None]:
    """Let an ensemble's members run once for each input; on leaving, what was kept is let go."""
    ensemble.__dict__["run_members"] = KeptOutputs(ensemble, budget)
    try:
        yield
    finally:
        del ensemble.__dict__["run_members"]


def _identity(call: MemberCall, inputs: Inputs) -> Hashable | None:
    """Return what tells this input from all others that are alive; None if nothing does."""
    plain = call is forward or isinstance(getattr(call, "__self__", None), ParallelEnsemble)
    leaves, structure = flatten(inputs)
    if not plain:
        return None
    parts: list[Hashable] = [getattr(call, "__name__", ""), tuple(structure.paths())]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.requires_grad or leaf.is_inference():  # which does not count its changes
                return None
            parts.append((id(leaf), leaf._version))
        elif isinstance(leaf, (int, float, str, type(None))):
            parts.append((type(leaf), leaf))
        else:
            return None
    return tuple(parts)


def _bytes(output: Any) -> int | None:
    """Return an output's memory; None if it cannot be kept."""
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in flatten(output)[0]):
        return None
    return batch_bytes(output)


def _copy(output: Any) -> Any:
    return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
