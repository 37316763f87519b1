"""The workers of one ensemble: the executor chosen for its groups of members, started on first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, TypeVar

import torch

from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.groups import Group, share_cores
from fusion_ensemble_plugin.plugins import executor_factory
from fusion_ensemble_plugin.tree import flatten

T = TypeVar("T")

_starting = Lock()


class Workers:
    """Runs one call for each group of members.

    Copies and pickles of workers carry the choice of executor, not its threads; these start again on first use.

    Args:
        executor: "auto", an executor's name, or what makes one; see `fusion_ensemble_plugin.plugins.executor_factory`.
        compiled: Whether members are compiled on their first call.

    Attributes:
        stacks_members: Whether the members of one worker are to run as one.

    Raises:
        ValueError: If there is no such executor.
    """

    _executor: tuple[Any, Executor] | None
    _compiled_for: set[Any]

    def __init__(self, executor: str | Callable[..., Executor], compiled: bool) -> None:
        self.stacks_members: bool = getattr(executor_factory(executor), "stacks_members", False)
        self._spec = executor
        self._compiled = compiled
        self._reset()

    def run(
        self, groups: Sequence[Group], calls: Sequence[Callable[[], T]], inputs: Any, automatic: str = "sequential"
    ) -> list[T]:
        """Run each group's call on its worker.

        One at a time where it may compile a member for new shapes, which is not thread-safe (pytorch issue 123177).

        Args:
            groups: The groups.
            calls: One call a group.
            inputs: What the calls compute on.
            automatic: The executor that "auto" stands for.
        """
        executor = self._executor_for(groups, automatic)
        named = dict(zip([group.worker for group in groups], calls))
        signature = _signature(inputs) if self._compiled else None
        if signature is None or signature in self._compiled_for:
            return executor.run(named)
        results = [result for name, call in named.items() for result in executor.run({name: call})]
        self._compiled_for.add(signature)
        return results

    def close(self) -> None:
        """End the workers; the next run starts them again."""
        if self._executor is not None:
            self._executor[1].close()

    def _executor_for(self, groups: Sequence[Group], automatic: str) -> Executor:
        """Return the executor, made anew for other workers, and in a forked process, where threads are gone."""
        key = (tuple(group.worker for group in groups), os.getpid())
        with _starting:
            if self._executor is None or self._executor[0] != key:
                self._executor = (key, executor_factory(self._spec, automatic)(share_cores(groups)))
            return self._executor[1]

    def _reset(self) -> None:
        self._executor = None
        self._compiled_for = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_spec": self._spec, "_compiled": self._compiled, "stacks_members": self.stacks_members}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._reset()


def _signature(inputs: Any) -> Any:
    """Return what a compiled member may be compiled anew for: shapes, dtypes, plain values, grad mode."""
    leaves, structure = flatten(inputs)
    kinds = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves)
    return kinds, tuple(structure.paths()), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
