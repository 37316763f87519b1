"""CPU lanes share torch's intra-op threads and leave every other thread's number as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.executor import ThreadsExecutor
from fusion_ensemble_plugin.groups import Group, share_cores

CPU = torch.device("cpu")


@pytest.fixture
def seven_threads() -> Iterator[None]:
    """A caller that set torch's number of threads to one that no machine has by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


class ThreadCount(nn.Module):
    """Returns the number of intra-op threads of the thread that it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self) -> Tensor:
        torch.ones(64, 64) @ torch.ones(64, 64)  # a worker's number must outlive its first operation
        self.seen.append(torch.get_num_threads())
        return torch.zeros(1)


def in_a_new_thread(call: Callable[[], int]) -> int:
    """Return what a call gives in a thread that starts now."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def lanes(count: int) -> list[Group]:
    """Return groups of one member each, on so many lanes."""
    return [Group(f"cpu:{i}", CPU, (i,)) for i in range(count)]


@pytest.mark.usefixtures("seven_threads")
@pytest.mark.parametrize(("count", "shares"), [(2, [4, 3]), (3, [3, 2, 2]), (7, [1] * 7), (9, [1] * 9)])
def test_lanes_share_the_callers_threads_and_get_one_at_least(count: int, shares: list[int]) -> None:
    assert share_cores(lanes(count)) == {f"cpu:{i}": share for i, share in enumerate(shares)}


@pytest.mark.usefixtures("seven_threads")
def test_only_workers_on_the_cpu_get_a_share() -> None:
    gpu, nowhere = Group("cuda:0", torch.device("cuda:0"), (2,)), Group("None", None, (3,))
    assert share_cores([*lanes(2), gpu, nowhere]) == {"cpu:0": 4, "cpu:1": 3, "cuda:0": None, "None": None}
    assert share_cores([*lanes(1), gpu]) == {"cpu:0": None, "cuda:0": None}


@pytest.mark.usefixtures("seven_threads")
def test_members_on_lanes_run_with_their_share_from_call_to_call() -> None:
    members = [ThreadCount() for _ in range(3)]
    ensemble = ParallelEnsemble(members, ["cpu:0", "cpu:1", "cpu:2"])
    for _ in range(3):
        ensemble()
    ensemble.close()
    assert [member.seen for member in members] == [[3] * 3, [2] * 3, [2] * 3]


@pytest.mark.usefixtures("seven_threads")
def test_neither_the_caller_nor_running_nor_later_threads_notice_the_lanes() -> None:
    asked, answered, counts = threading.Event(), threading.Event(), []

    def running() -> None:
        torch.get_num_threads()  # it has its number by now
        answered.set()
        asked.wait(30)
        counts.append(torch.get_num_threads())

    thread = threading.Thread(target=running)
    thread.start()
    answered.wait(30)
    ensemble = ParallelEnsemble([ThreadCount(), ThreadCount()], ["cpu:0", "cpu:1"])
    ensemble()
    asked.set()
    thread.join()
    assert counts == [7]
    assert torch.get_num_threads() == 7
    assert in_a_new_thread(torch.get_num_threads) == 7
    ensemble.close()
    assert in_a_new_thread(torch.get_num_threads) == 7


@pytest.mark.usefixtures("seven_threads")
def test_executors_that_start_at_the_same_time_put_the_default_back() -> None:
    executors = [ThreadsExecutor({"a": 1, "b": 2, "c": 3}) for _ in range(8)]
    start = threading.Barrier(8)
    counts: list[list[int]] = []

    def call(executor: ThreadsExecutor) -> None:
        start.wait(30)
        counts.append(executor.run(dict.fromkeys("abc", torch.get_num_threads)))

    callers = [threading.Thread(target=call, args=(executor,)) for executor in executors]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for executor in executors:
        executor.close()
    assert counts == [[1, 2, 3]] * 8
    assert in_a_new_thread(torch.get_num_threads) == 7


@pytest.mark.usefixtures("seven_threads")
def test_a_single_worker_on_the_cpu_keeps_torchs_setting() -> None:
    member = ThreadCount()
    ensemble = ParallelEnsemble([member], ["cpu:3"], executor="threads")
    ensemble()
    ensemble.close()
    assert member.seen == [7]
