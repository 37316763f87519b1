"""Nothing stays behind: no thread, file or tensor, after many forwards, after errors, after the ensemble is gone."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.placement import Placement

LANES = ("cpu:0", "cpu:1", "cpu:0")
WAYS: dict[str, dict[str, Any]] = {
    "sequential": {"executor": "sequential"},
    "threads": {"executor": "threads"},
    "stacked": {"executor": "stacked"},
    "offloaded": {"offload": "disk"},
}


class Member(nn.Module):
    """A layer that fails on request."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        if fail:
            raise RuntimeError("asked to fail")
        return self.layer(x)


def made(way: str) -> ParallelEnsemble:
    placement = Placement(LANES, offloaded=(1, 2) if way == "offloaded" else ())
    return ParallelEnsemble([Member().eval() for _ in LANES], placement, **WAYS[way])


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def held() -> tuple[int, int, int]:
    """Return the threads, open files and tensors of this process."""
    process = psutil.Process()
    return len(threading.enumerate()), process.num_fds() if hasattr(process, "num_fds") else 0, tensors()


def wait_for_threads(count: int) -> None:
    """Give workers that were told to end the moment that it takes."""
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_forwards_hold_no_more_than_two(way: str) -> None:
    ensemble, x = made(way), torch.ones(2, 4)
    with torch.no_grad():
        for _ in range(2):
            ensemble(x)
        before = held()
        for _ in range(1000):
            ensemble(x)
        assert held() == before


@pytest.mark.parametrize("way", WAYS)
def test_an_error_holds_nothing_and_the_next_forward_works(way: str) -> None:
    ensemble, x = made(way), torch.ones(2, 4)
    with torch.no_grad():
        expected = ensemble(x)
        before = held()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="asked to fail"):
                ensemble(x, fail=True)
        assert held() == before
        assert torch.equal(ensemble(x), expected)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_outlives_its_ensemble(way: str) -> None:
    x = torch.ones(2, 4)
    with torch.no_grad():
        threads = threading.active_count()
        made(way)(x)  # what is loaded on first use stays
        wait_for_threads(threads)
        before = held()
        ensemble = made(way)
        ensemble(x)
        weights = [weakref.ref(parameter) for parameter in ensemble.parameters()]
        del ensemble
        wait_for_threads(threads)
        after = held()
    assert after == before
    assert [weight() for weight in weights if weight() is not None] == []


def test_an_ensemble_goes_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        ensemble = made("threads")
        ensemble(torch.ones(2, 4))
        gone = weakref.ref(ensemble)
        del ensemble
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["sequential", "threads"])
def test_an_interrupt_in_a_member_ends_the_forward_and_holds_nothing(way: str) -> None:
    ensemble, x = made(way), torch.ones(2, 4)
    with torch.no_grad():
        expected = ensemble(x)
        before = held()

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        hook = ensemble.model_list[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensemble(x)
        hook.remove()
        del hook, interrupt
        assert held()[:2] == before[:2]
        assert torch.equal(ensemble(x), expected)
