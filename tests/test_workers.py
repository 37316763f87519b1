"""The workers of one ensemble: side by side once members are compiled for a kind of input, and one at a time before."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fusion_ensemble_plugin.groups import Group
from fusion_ensemble_plugin.workers import Workers

LANES = [Group("cpu:0", torch.device("cpu"), (0,)), Group("cpu:1", torch.device("cpu"), (1,))]


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Workers of members that are compiled on their first call."""
    workers = Workers("threads", compiled=True)
    yield workers
    workers.close()


def side_by_side(workers: Workers, inputs: Any, patience: float = 30.0) -> bool:
    """Say whether the calls of two workers run at the same time, for so many seconds at least."""
    meeting = threading.Barrier(2)

    def call() -> bool:
        try:
            meeting.wait(timeout=patience)
        except threading.BrokenBarrierError:
            return False
        return True

    first, second = workers.run(LANES, [call, call], inputs)
    assert first == second
    return first


def one_at_a_time(workers: Workers, inputs: Any) -> bool:
    return not side_by_side(workers, inputs, patience=0.1)


def inputs(*shape: int, dtype: torch.dtype = torch.float32, flag: Any = True) -> Any:
    return (torch.zeros(shape, dtype=dtype),), {"flag": flag}


def test_members_that_are_not_compiled_run_side_by_side_at_once() -> None:
    workers = Workers("threads", compiled=False)
    assert side_by_side(workers, inputs(2, 3))
    workers.close()


def test_the_first_call_with_inputs_of_a_kind_may_compile_and_runs_one_at_a_time(workers: Workers) -> None:
    assert one_at_a_time(workers, inputs(2, 3))
    assert side_by_side(workers, inputs(2, 3))


@pytest.mark.parametrize(
    ("other", "mode"),
    [
        (inputs(4, 3), torch.enable_grad),
        (inputs(2, 3, dtype=torch.float64), torch.enable_grad),
        (inputs(2, 3, flag=False), torch.enable_grad),
        (((torch.zeros(2, 3),), {"other": True}), torch.enable_grad),
        (inputs(2, 3), torch.no_grad),
        (inputs(2, 3), torch.inference_mode),
    ],
    ids=["shape", "dtype", "value", "keyword", "no gradients", "inference"],
)
def test_each_other_kind_is_compiled_for_once(workers: Workers, other: Any, mode: Callable[[], Any]) -> None:
    assert one_at_a_time(workers, inputs(2, 3))
    with mode():
        assert one_at_a_time(workers, other)
        assert side_by_side(workers, other)
    assert side_by_side(workers, inputs(2, 3))


def test_a_call_that_fails_counts_as_not_compiled(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        workers.run(LANES, [lambda: 1 // 0, lambda: 0], inputs(2, 3))
    assert one_at_a_time(workers, inputs(2, 3))
    assert side_by_side(workers, inputs(2, 3))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda workers: pickle.loads(pickle.dumps(workers))])
def test_copies_have_the_choice_but_neither_the_threads_nor_what_is_compiled(
    workers: Workers, again: Callable[[Workers], Workers]
) -> None:
    assert one_at_a_time(workers, inputs(2, 3))
    other = again(workers)
    assert one_at_a_time(other, inputs(2, 3))
    assert side_by_side(other, inputs(2, 3))
    other.close()


def test_closed_workers_end_and_start_again() -> None:
    workers = Workers("threads", compiled=False)
    workers.close()  # before they have started
    before = threading.active_count()
    assert side_by_side(workers, inputs(1))
    assert threading.active_count() == before + 2
    workers.close()
    assert threading.active_count() == before
    assert side_by_side(workers, inputs(1))
    workers.close()


@pytest.mark.parametrize(("automatic", "threads"), [("threads", 2), ("sequential", 0)])
def test_auto_is_what_the_ensemble_says(automatic: str, threads: int) -> None:
    workers, before = Workers("auto", compiled=False), threading.active_count()
    workers.run(LANES, [int, int], inputs(1), automatic)
    assert threading.active_count() == before + threads
    workers.close()
