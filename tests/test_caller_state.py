"""What torch keeps per thread holds for members in workers as it does for the caller."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.caller_state import with_caller_state

LANES = ["cpu:0", "cpu:1"]
REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


def state() -> dict[str, Any]:
    """Return all that a member could notice of the caller's settings."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "context variable": REQUEST.get(),
    }


class Witness(nn.Module):
    """Notes the state that it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64, device="cpu"))
        self.seen: dict[str, Any] = {}
        self.thread = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.thread = state(), threading.get_ident()
        return x


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def context_variable() -> Iterator[None]:
    token = REQUEST.set("number 7")
    yield
    REQUEST.reset(token)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "as it comes": contextlib.nullcontext,
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast without cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "autocast switched off": lambda: torch.autocast("cpu", enabled=False),
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "context variable": context_variable,
}


@pytest.mark.parametrize("name", STATES)
def test_a_member_in_a_worker_sees_the_callers_state(name: str) -> None:
    members, x = [Witness(), Witness()], torch.ones(1)
    ensemble = ParallelEnsemble(members, LANES)
    with STATES[name]():
        expected = state()
        ensemble(x)
    assert [member.seen for member in members] == [expected] * 2
    assert threading.get_ident() not in {member.thread for member in members}
    ensemble(x)  # and the next call its own
    assert [member.seen for member in members] == [state()] * 2
    ensemble.close()


def test_states_hold_inside_one_another() -> None:
    member, x = Witness(), torch.ones(1)
    ensemble = ParallelEnsemble([member], ["cpu:0"], executor="threads")
    with torch.inference_mode(), torch.autocast("cpu", torch.float16), torch.enable_grad(), context_variable():
        expected = state()
        ensemble(x)
    ensemble.close()
    assert member.seen == expected
    assert (expected["grad"], expected["inference"], expected["autocast"]) == (True, True, True)


def test_a_call_leaves_its_threads_own_state_as_it_was() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), context_variable():
        bound = with_caller_state(state)
        expected = state()
    before = state()
    assert bound() == expected
    assert state() == before


def test_a_call_that_fails_leaves_its_threads_own_state_as_it_was() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        bound = with_caller_state(lambda: 1 // 0)
    before = state()
    with pytest.raises(ZeroDivisionError):
        bound()
    assert state() == before


def test_two_callers_in_different_states_each_see_their_own() -> None:
    seen: dict[str, list[bool]] = {"no_grad": [], "grad": []}
    start = threading.Barrier(2)

    class Note(nn.Module):
        def forward(self, caller: str) -> None:
            seen[caller].append(torch.is_grad_enabled())

    ensemble = ParallelEnsemble([Note(), Note()], LANES)

    def call(caller: str) -> None:
        start.wait(30)
        for _ in range(50):
            with torch.set_grad_enabled(caller == "grad"):
                ensemble(caller)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in seen]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    ensemble.close()
    assert seen == {"no_grad": [False] * 100, "grad": [True] * 100}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_callers_cuda_device_and_stream_hold_in_workers() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        bound = with_caller_state(lambda: (torch.cuda.current_stream(), torch.cuda.current_device()))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(bound()))
    thread.start()
    thread.join()
    assert found == [(stream, torch.cuda.current_device())]
