"""Members spread over ranks give what all of them give in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from worlds import begin, members, rows, run_world

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

WORLDS, COUNTS = (1, 2, 3), (1, 2, 5, 8)
STEPS = ((4, 4, 4), (3, 1, 0), (2, 5, 3))
"""The rows that each rank's loader gives at each step; later, only rank 0 has batches left."""
LATE = 2
REDUCERS: dict[str, Any] = {
    "mean": "mean",
    "sum": "sum",
    "max": "max",
    "min": "min",
    "median": "median",
    "trimmed_mean": "trimmed_mean",
    "variance": "variance",
    "probability_mean": "probability_mean",
    "log_probability_mean": "log_probability_mean",
    "majority_vote": "majority_vote",
}
LAYOUTS = [
    (world, count, size)
    for world in WORLDS
    for count in COUNTS
    for size in range(1, world + 1)
    if world % size == 0 and size <= count
]


def every_layout(rank: int, folder: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for world in WORLDS:
        if rank < world:
            begin_again(rank, world, folder)
            for layout in LAYOUTS:
                if layout[0] == world:
                    found[layout] = steps_of(rank, layout)
    begin_again(rank, max(WORLDS), folder / "reducers")
    for name, reducer in REDUCERS.items():
        ensemble = SimpleEnsembleAlgorithm(reducer=reducer, member_parallel=True).run(members(5))
        found[name] = ensemble(rows(rank, 0, 4))
    return found


def begin_again(rank: int, world: int, folder: Path) -> None:
    dist.destroy_process_group()
    folder.mkdir(exist_ok=True)
    begin(rank, world, folder / f"store{world}")


@torch.no_grad()
def steps_of(rank: int, layout: tuple[int, int, int]) -> dict[str, Any]:
    _, count, size = layout
    ensemble = SimpleEnsembleAlgorithm(member_parallel=size).run(members(count))
    outputs = [ensemble(rows(rank, step, given[rank])) for step, given in enumerate(STEPS)]
    if rank == 0:
        outputs += [ensemble(rows(0, len(STEPS) + step, 3)) for step in range(LATE)]
    if size > 1:
        ensemble.join()
    return {"outputs": outputs, "held": list(ensemble.state_dict()), "parameters": parameters(ensemble)}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("world")
    results = run_world(every_layout, max(WORLDS), folder, folder / "worlds")
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def oracle(count: int, given: Tensor) -> Tensor:
    """Return the mean of the members' logits in float64."""
    return sum(member.double()(given.double())["logits"] for member in members(count)) / count


@pytest.mark.parametrize("layout", LAYOUTS, ids="{0[0]} ranks, {0[1]} members, teams of {0[2]}".format)
def test_each_rank_gets_the_float64_mean_for_its_own_rows_however_many_they_are(
    found: list[dict[Any, Any]], layout: tuple[int, int, int]
) -> None:
    world, count, _ = layout
    for rank in range(world):
        given = [rows(rank, step, number[rank]) for step, number in enumerate(STEPS)]
        given += [rows(0, len(STEPS) + step, 3) for step in range(LATE)] if rank == 0 else []
        for output, x in zip(found[rank][layout]["outputs"], given, strict=True):
            expected = oracle(count, x)
            torch.testing.assert_close(output["logits"].double(), expected, atol=1e-6, rtol=1e-6)
            assert output["logits"].dtype == torch.float32
            assert output["rows"].equal(x.long()[:, 0])
            assert output["kind"] == "linear"
            assert output["more"][1] is None


@pytest.mark.parametrize("layout", LAYOUTS, ids="{0[0]} ranks, {0[1]} members, teams of {0[2]}".format)
def test_each_team_holds_each_member_once_and_each_rank_counts_the_parameters_of_all(
    found: list[dict[Any, Any]], layout: tuple[int, int, int]
) -> None:
    world, count, size = layout
    everything = ParallelEnsemble(members(count))
    for first in range(0, world, size):
        held = [key for rank in range(first, first + size) for key in found[rank][layout]["held"]]
        assert held == list(everything.state_dict())
    assert {found[rank][layout]["parameters"] for rank in range(world)} == {parameters(everything)}


@pytest.mark.parametrize("name", REDUCERS)
@torch.no_grad()
def test_every_reducer_gives_what_it_gives_in_one_process(found: list[dict[Any, Any]], name: str) -> None:
    ensemble = ParallelEnsemble(members(5), reducer=REDUCERS[name])
    batch = [rows(rank, 0, 4) for rank in range(3)]
    expected = ensemble(torch.cat(batch))
    for rank in range(3):
        output = found[rank][name]
        for got, whole in zip(
            output if name == "variance" else [output], expected if name == "variance" else [expected]
        ):
            own = whole["logits"][4 * rank : 4 * rank + 4]
            if name in ("max", "min", "majority_vote", "median"):
                assert got["logits"].equal(own)
            torch.testing.assert_close(got["logits"], own, atol=1e-6, rtol=1e-6)
