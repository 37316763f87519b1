"""Calls leave nothing to the garbage collector: it may be long in coming, and what awaits it is memory of a device."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.tree import map_leaves

EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "threads", "stacked"])
LANES = ["cpu:0", "cpu:1", "cpu:0", "cpu:1"]


class Member(nn.Module):
    """Does something first, and remembers its outputs without keeping them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.outputs: list[weakref.ref[Tensor]] = []
        self.first: Callable[[], Any] = int

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.first()
        y = self.layer(x)
        self.outputs.append(weakref.ref(y))
        return {"logits": y, "hidden": (y + 1,)}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def ensemble_of(executor: str, count: int = 4) -> ParallelEnsemble:
    return ParallelEnsemble([Member() for _ in range(count)], LANES[:count], executor=executor)


def outputs(ensemble: ParallelEnsemble) -> list[Tensor | None]:
    """Return those of the members' outputs that are still there, and None for each that is not."""
    return [reference() for member in ensemble.model_list for reference in member.outputs]


def test_a_tree_that_is_put_together_goes_with_its_last_owner() -> None:
    tensor = torch.ones(3)
    built = map_leaves(lambda leaf: leaf + 1, {"a": (tensor, [tensor])})
    leaf = weakref.ref(built["a"][1][0])
    del built
    assert leaf() is None


@EXECUTORS
def test_the_members_outputs_are_gone_when_the_forward_returns(executor: str) -> None:
    ensemble = ensemble_of(executor)
    with torch.no_grad():
        result = ensemble(torch.randn(2, 3))
    assert result["logits"].shape == (2, 3)
    assert outputs(ensemble) == [None] * (2 if executor == "stacked" else 4)  # the first of a stack computes for all


@EXECUTORS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_input_and_result_go_with_their_last_owner(executor: str, mode: Any) -> None:
    ensemble = ensemble_of(executor)
    for _ in range(2):  # in the first forward members get copies of the input
        with mode():
            x = torch.randn(2, 3)
            result = ensemble(x)
        held = [weakref.ref(tensor) for tensor in (x, result["logits"], result["hidden"][0])]
        del x, result
        assert [reference() for reference in held] == [None] * 3


@EXECUTORS
def test_no_tensor_waits_for_the_collector(executor: str) -> None:
    ensemble, x = ensemble_of(executor), torch.randn(2, 3)
    for _ in range(2):
        ensemble(x)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [thing for thing in gc.garbage if issubclass(type(thing), Tensor)]
        gc.set_debug(0)
        gc.garbage.clear()
        assert left == []


@EXECUTORS
def test_an_error_once_handled_holds_neither_inputs_nor_outputs(executor: str) -> None:
    ensemble, x = ensemble_of(executor), torch.randn(2, 3)
    for index in (1, 3):
        ensemble.model_list[index].first = fail
    with torch.no_grad(), pytest.raises(ZeroDivisionError) as caught:
        ensemble(x)
    given = weakref.ref(x)
    del x, caught
    assert given() is None
    assert set(outputs(ensemble)) <= {None}


def fail() -> None:
    raise ZeroDivisionError


@EXECUTORS
def test_an_ensemble_takes_its_threads_and_weights_with_it(executor: str) -> None:
    before = set(threading.enumerate())
    ensemble = ensemble_of(executor)
    ensemble(torch.randn(2, 3))
    workers = set(threading.enumerate()) - before
    assert len(workers) == (0 if executor == "sequential" else 2)
    weights = [weakref.ref(parameter) for parameter in ensemble.parameters()]
    del ensemble
    assert ended(workers)
    assert [reference() for reference in weights] == [None] * len(weights)


def test_workers_that_have_no_member_left_end_while_the_ensemble_goes_on() -> None:
    before = set(threading.enumerate())
    ensemble = ensemble_of("threads")
    ensemble(torch.randn(2, 3))
    workers = set(threading.enumerate()) - before
    ensemble.recombine(weights=[1, 0, 1, 0])  # none on the second lane counts any more
    ensemble(torch.randn(2, 3))
    assert ended(workers)
    assert len(set(threading.enumerate()) - before) == 1
    ensemble.close()


def ended(workers: set[threading.Thread]) -> bool:
    for worker in workers:
        worker.join(timeout=30)
    return not any(worker.is_alive() for worker in workers)


@EXECUTORS
def test_control_c_ends_a_forward_and_leaves_the_ensemble_usable(executor: str) -> None:
    ensemble, x = ensemble_of(executor, count=2), torch.randn(2, 3)
    expected = ensemble(x)["logits"]
    running, pressed = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        pressed.wait(30)

    def press() -> None:
        running.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        pressed.set()

    for member in ensemble.model_list:
        member.first = slow
    other = threading.Thread(target=press)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        ensemble(x)
    other.join()
    for member in ensemble.model_list:
        member.first = int
    torch.testing.assert_close(ensemble(x)["logits"], expected)
