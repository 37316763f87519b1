"""Executors run one call a worker: really at the same time, in order, and errors leave them usable."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ensemble_plugin.executor import Executor, SequentialExecutor, StackedExecutor, ThreadsExecutor

NAMES = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
CORES: dict[str, int | None] = dict.fromkeys(NAMES)
KINDS: list[Callable[[Any], Executor]] = [SequentialExecutor, ThreadsExecutor, StackedExecutor]


@pytest.fixture
def threads() -> Iterator[ThreadsExecutor]:
    """Four workers, ended after the test."""
    executor = ThreadsExecutor(CORES)
    yield executor
    executor.close()


@pytest.mark.parametrize("kind", [ThreadsExecutor, StackedExecutor])
def test_four_calls_meet_at_one_barrier(kind: Callable[[Any], Executor]) -> None:
    barrier, executor = threading.Barrier(4), kind(CORES)
    arrivals = executor.run({name: lambda: barrier.wait(timeout=30) for name in NAMES})
    executor.close()
    assert sorted(arrivals) == [0, 1, 2, 3]


def test_the_sequential_executor_runs_in_the_calling_thread_and_in_order() -> None:
    seen: list[Any] = []
    calls = {name: lambda name=name: seen.append((name, threading.get_ident())) for name in NAMES}
    SequentialExecutor(CORES).run(calls)
    assert seen == [(name, threading.get_ident()) for name in NAMES]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(waits=st.lists(st.sampled_from([0.0, 0.001, 0.004]), min_size=1, max_size=4))
def test_results_come_in_the_order_of_the_calls_whoever_ends_first(
    kind: Callable[[Any], Executor], waits: list[float]
) -> None:
    executor = kind(CORES)
    calls = {name: lambda i=i, s=s: (time.sleep(s), i)[1] for i, (name, s) in enumerate(zip(NAMES, waits))}
    assert executor.run(calls) == list(range(len(waits)))
    executor.close()


def test_a_worker_is_one_thread_from_call_to_call(threads: ThreadsExecutor) -> None:
    first, second = (threads.run(dict.fromkeys(NAMES, threading.get_ident)) for _ in range(2))
    assert first == second
    assert len({*first, threading.get_ident()}) == 5


def test_no_thread_is_started_before_the_first_call() -> None:
    before = threading.active_count()
    executor = ThreadsExecutor(CORES)
    assert threading.active_count() == before
    executor.run({"cpu:0": int})
    assert threading.active_count() == before + 1  # and only the worker that has a call
    executor.close()


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_errors_the_first_in_the_order_of_the_calls_is_raised(kind: Callable[[Any], Executor]) -> None:
    def fail(name: str, seconds: float) -> None:
        time.sleep(seconds)
        raise ValueError(name)

    calls = {"cpu:0": int, "cpu:1": lambda: fail("slow", 0.05), "cpu:2": lambda: fail("quick", 0.0)}
    executor = kind(CORES)
    with pytest.raises(ValueError, match="slow"):
        executor.run(calls)
    assert executor.run({"cpu:1": lambda: 1, "cpu:2": lambda: 2}) == [1, 2]  # and works on
    executor.close()


def test_an_error_waits_for_the_other_calls(threads: ThreadsExecutor) -> None:
    ended: list[str] = []

    def slow() -> None:
        time.sleep(0.05)
        ended.append("slow")

    with pytest.raises(ZeroDivisionError):
        threads.run({"cpu:0": lambda: 1 // 0, "cpu:1": slow})
    assert ended == ["slow"]


def test_an_error_once_handled_holds_no_result_not_even_until_the_next_garbage_collection(
    threads: ThreadsExecutor,
) -> None:
    results: list[weakref.ref[torch.Tensor]] = []

    def result() -> torch.Tensor:
        tensor = torch.ones(3)
        results.append(weakref.ref(tensor))
        return tensor

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            threads.run({"cpu:0": result, "cpu:1": lambda: 1 // 0, "cpu:2": result})
        del caught
        assert [reference() for reference in results] == [None, None]
    finally:
        gc.enable()


def test_an_interrupt_drops_what_has_not_begun_and_leaves_the_executor_usable(threads: ThreadsExecutor) -> None:
    busy, go_on, ran = threading.Event(), threading.Event(), []

    def occupy() -> None:
        busy.set()
        go_on.wait(30)

    def interrupt() -> None:
        time.sleep(0.05)  # the main thread waits by now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    other_caller = threading.Thread(target=threads.run, args=({"cpu:1": occupy},))
    other_caller.start()
    busy.wait(30)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run({"cpu:0": interrupt, "cpu:1": lambda: ran.append("late")})
    finally:
        go_on.set()
        other_caller.join()
    assert threads.run({"cpu:1": lambda: "again"}) == ["again"]
    assert ran == []


def test_an_interrupt_raised_in_a_call_reaches_the_caller(threads: ThreadsExecutor) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run({"cpu:0": interrupted, "cpu:1": int})
    assert threads.run({"cpu:0": int}) == [0]


def test_workers_start_again_after_closing(threads: ThreadsExecutor) -> None:
    (first,) = threads.run({"cpu:0": threading.current_thread})
    threads.close()
    assert not first.is_alive()
    assert threads.run({"cpu:0": lambda: 1}) == [1]


def test_workers_end_with_their_executor() -> None:
    executor = ThreadsExecutor(CORES)
    workers = executor.run(dict.fromkeys(NAMES, threading.current_thread))
    del executor
    for worker in workers:
        worker.join(timeout=30)
    assert not any(worker.is_alive() for worker in workers)


def test_callers_from_several_threads_share_the_workers() -> None:
    for _ in range(20):  # a race, if there is one, needs tries
        executor, start, seen = ThreadsExecutor(CORES), threading.Barrier(4), set()

        def call(executor: ThreadsExecutor = executor, start: Any = start, seen: set[int] = seen) -> None:
            start.wait(30)
            seen.update(executor.run(dict.fromkeys(NAMES, threading.get_ident)))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        executor.close()
        assert len(seen) == 4


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "1 // 0", "import os, signal; os.kill(os.getpid(), 2)"])
def test_the_interpreter_exits_although_workers_still_wait_for_calls(ending: str) -> None:
    code = f"""
from fusion_ensemble_plugin.executor import ThreadsExecutor
executor = ThreadsExecutor({{"cpu:0": 1, "cpu:1": 1}})
print(executor.run({{"cpu:0": lambda: "done", "cpu:1": lambda: "done"}}), flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "['done', 'done']\n"
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3, "1 // 0": 1}.get(ending, -2)
    assert done.stderr.count("Traceback") == (0 if ending in ("", "raise SystemExit(3)") else 1)
