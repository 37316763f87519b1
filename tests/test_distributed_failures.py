"""A rank that fails, is killed or never comes: the other ones end in time with an error that names it."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn
from worlds import begin, members, rows, run_world

from fusion_ensemble_plugin import SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.distributed.failures import RankError

pytestmark = pytest.mark.slow

TIMEOUT = 10.0
"""Seconds that ranks wait for each other here."""


class Broken(nn.Module):
    """A member that raises."""

    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("three is no crowd")


class Deadly(nn.Module):
    """A member that takes its process with it."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Pool(BaseModelPool):
    """A pool whose members can't all be loaded, and which notes those that were."""

    def __init__(self, broken: str = "") -> None:
        super().__init__({name: {"_target_": "torch.nn.Identity"} for name in "abcd"})
        self.broken, self.loaded = broken, list[str]()

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        self.loaded.append(model_name_or_config)
        if model_name_or_config == self.broken:
            raise OSError("the disk is on fire")
        return members(4)["abcd".index(model_name_or_config)]


def method(**options: Any) -> SimpleEnsembleAlgorithm:
    return SimpleEnsembleAlgorithm(member_parallel=True, rank_timeout=TIMEOUT, **options)


def outcome(call: Callable[[], Any]) -> tuple[str, str, float]:
    """Return an error's type, its text with notes, and the seconds that it took to come."""
    start = time.monotonic()
    try:
        call()
    except Exception as error:
        return type(error).__name__, "\n".join([str(error), *getattr(error, "__notes__", [])]), time.monotonic() - start
    return "", "", time.monotonic() - start


def ranks_that_fail(rank: int, folder: Path) -> dict[str, Any]:
    """Do what goes wrong on rank 1 alone, one after another."""
    found: dict[str, Any] = {}
    ensemble = method().run({"a": members(1)[0], "b": Broken()})
    with torch.no_grad():
        found["forward"] = outcome(lambda: ensemble(rows(rank, 0, 2)))
    _again(rank, folder / "load")
    found["load"] = outcome(lambda: method().run(Pool(broken="d")))
    _again(rank, folder / "pools")
    pool = dict(zip("ab" if rank else "ba", members(2)))
    found["pools"] = outcome(lambda: method().run(pool))
    _again(rank, folder / "options")
    found["size"] = outcome(lambda: SimpleEnsembleAlgorithm(member_parallel=3).run(members(4)))
    found["few"] = outcome(lambda: method().run(members(1)))
    _again(rank, folder / "lazy")
    own = Pool()
    method().run(own)
    found["loaded"] = own.loaded
    marked = dict(zip("ab", members(2)))
    for member in marked.values():
        member._fusion_bench_target_modules = ["backbone"]
    found["heads"] = outcome(lambda: method().run(marked))
    _again(rank, folder / "words")
    generating = method().run(members(2))
    found["generate"] = outcome(lambda: generating.generate(torch.zeros(1, 1, dtype=torch.long)))
    found["pickle"] = outcome(lambda: pickle.dumps(generating))
    _again(rank, folder / "late")
    found["moved"] = outcome(lambda: generating(rows(rank, 0, 2)))
    if rank == 0:  # the other one never comes
        found["late"] = outcome(lambda: method().run(members(2)))
    return found


def _again(rank: int, folder: Path) -> None:
    dist.destroy_process_group()
    folder.mkdir(exist_ok=True)
    begin(rank, 2, folder / "store")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    results = run_world(ranks_that_fail, 2, folder, folder)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_a_member_that_raises_is_named_with_its_rank_on_every_rank(found: list[dict[str, Any]]) -> None:
    kind, text, seconds = found[0]["forward"]
    assert kind == RankError.__name__
    assert "rank 1" in text
    assert "'b'" in text
    assert "ArithmeticError: three is no crowd" in text
    assert seconds < TIMEOUT
    kind, text, _ = found[1]["forward"]
    assert kind == "ArithmeticError"
    assert "ensemble member 'b'" in text
    assert "on rank 1" in text


def test_a_member_that_cannot_be_loaded_ends_every_rank(found: list[dict[str, Any]]) -> None:
    kind, text, seconds = found[0]["load"]
    assert (kind, seconds < TIMEOUT) == (RankError.__name__, True)
    assert "rank 1 failed in loading the members: OSError: the disk is on fire" in text
    assert found[1]["load"][0] == "OSError"
    assert "'d'" in found[1]["load"][1]


def test_a_rank_loads_its_own_members_only(found: list[dict[str, Any]]) -> None:
    assert [result["loaded"] for result in found] == [["a", "b"], ["c", "d"]]


def test_pools_that_differ_are_told(found: list[dict[str, Any]]) -> None:
    for result in found:
        kind, text, _ = result["pools"]
        assert kind == "ValueError"
        assert text == "the ranks' model pools differ: rank 0: b, a; rank 1: a, b"


def test_a_wrong_number_of_ranks_is_told_with_what_is_possible(found: list[dict[str, Any]]) -> None:
    for result in found:
        assert result["size"][0] == "ValueError"
        assert "member_parallel=3" in result["size"][1]
        assert result["few"][0] == "ValueError"
        assert "2 ranks can't share 1 members" in result["few"][1]


def test_generation_says_that_it_does_not_work_yet(found: list[dict[str, Any]]) -> None:
    for result in found:
        kind, text, _ = result["generate"]
        assert kind == "NotImplementedError"
        assert "member_parallel=false" in text


def test_heads_that_other_ranks_hold_are_told(found: list[dict[str, Any]]) -> None:
    kinds = {result["heads"][0] for result in found}
    assert "ValueError" in kinds
    assert kinds <= {"ValueError", RankError.__name__}
    assert all("have backbone in common" in result["heads"][1] for result in found)


def test_an_ensemble_belongs_to_the_ranks_that_it_was_built_on(found: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(found):
        assert result["pickle"][0] == result["moved"][0] == "ValueError"
        assert f"holds only the members of rank {rank} of 2" in result["pickle"][1]
        assert f"was built on rank {rank} of 2" in result["moved"][1]


def test_a_rank_that_never_comes_is_named_in_time(found: list[dict[str, Any]]) -> None:
    kind, text, seconds = found[0]["late"]
    assert kind == RankError.__name__
    assert "rank 1 did not answer" in text
    assert seconds < TIMEOUT + 10


def killed(rank: int, folder: Path) -> None:
    """Run a member that kills rank 1, and leave what rank 0 is told."""
    begin(rank, 2, folder / "store")
    ensemble = method().run({"a": members(1)[0], "b": Deadly()})
    with torch.no_grad():
        torch.save(outcome(lambda: ensemble(rows(rank, 0, 2))), folder / f"rank{rank}.pt")
    os._exit(0)


def test_when_a_rank_is_killed_the_other_ends_in_time_and_names_it_and_its_members(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    processes = [context.Process(target=killed, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    kind, text, seconds = torch.load(tmp_path / "rank0.pt")
    assert kind == RankError.__name__
    assert "rank 1" in text
    assert "'b'" in text
    assert seconds < TIMEOUT + 10
