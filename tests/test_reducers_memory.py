"""How many tensors of a member's size exist at once while outputs are folded, however many members there are."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.tree import flatten

SHAPE = (64, 1000)
BYTES = 4 * 64 * 1000


class LiveOutputs(TorchDispatchMode):
    """Counts the storages of one output's size or more that are alive; `peak` is the most there were after any call."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in flatten(result)[0]:
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if storage.nbytes() >= BYTES and key not in self._alive:
            self._alive[key] = storage.nbytes() // BYTES
            weakref.finalize(storage, self._alive.pop, key, None)


def peak_of(reducer: str, members: int) -> int:
    """Return the most outputs that were alive at once."""
    fold = Fold(make_reducer(reducer))
    with torch.no_grad(), LiveOutputs() as live:
        for index in range(members):
            fold.add(index, str(index), torch.rand(SHAPE), 1.0 + index)
        fold.lower()
    return live.peak


@pytest.mark.parametrize("reducer", ["mean", "sum", "max", "min", "probability_mean", "log_probability_mean"])
def test_three_outputs_exist_at_most_however_many_members(reducer: str) -> None:
    assert peak_of(reducer, 2) <= 3
    assert peak_of(reducer, 16) <= 3


@pytest.mark.parametrize("reducer", ["majority_vote", "variance"])
def test_reducers_with_two_results_hold_no_more_with_more_members(reducer: str) -> None:
    assert peak_of(reducer, 16) == peak_of(reducer, 3)


def test_the_median_holds_every_output_and_so_the_count_sees_them() -> None:
    fold = Fold(make_reducer("median"))
    with LiveOutputs() as live:
        for index in range(16):
            fold.add(index, str(index), torch.rand(SHAPE))
        fold.lower()
    assert live.peak >= 16
