"""The plan of a cluster against what ranks on this machine hold and send."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from worlds import begin, run_world

from fusion_ensemble_plugin import SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.__main__ import main
from fusion_ensemble_plugin.distributed.cost import Plan

MEMBERS, ROWS, WIDTH, OUT, FORWARDS = 8, 512, 512, 256, 20
WORLDS = (1, 2, 4)


class Layer(nn.Module):
    """A member that is nothing but weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((OUT, WIDTH), float(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def measured(rank: int, folder: Path) -> dict[int, dict[str, int]]:
    """Return the bytes of weights that this rank holds, and all that went over the loopback in one forward."""
    found = {}
    for world in WORLDS:
        if rank >= world:
            continue
        dist.destroy_process_group()
        (folder / str(world)).mkdir(exist_ok=True)
        begin(rank, world, folder / str(world) / "store")
        ensemble = SimpleEnsembleAlgorithm(member_parallel=True).run([Layer(seed) for seed in range(MEMBERS)])
        x = torch.randn(ROWS, WIDTH)
        with torch.no_grad():
            ensemble(x)  # descriptions of trees travel once
            wire = min(sent_in_one(ensemble, x) for _ in range(FORWARDS))  # other processes' traffic only adds
        own = [member.weight for member in ensemble.model_list if isinstance(member, Layer)]
        found[world] = {"weights": sum(weight.numel() * weight.element_size() for weight in own), "wire": wire}
    return found


def sent_in_one(ensemble: nn.Module, x: Tensor) -> int:
    """Return the bytes that went over the loopback while all ranks made one forward."""
    dist.barrier()
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    dist.barrier()
    ensemble(x)
    dist.barrier()
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, int]]]:
    if "lo" not in psutil.net_io_counters(pernic=True):
        pytest.skip("no loopback interface that counts bytes")
    folder = tmp_path_factory.mktemp("world")
    results = run_world(measured, max(WORLDS), folder, folder)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def planned(world: int) -> Plan:
    return Plan(MEMBERS, world, world, 4 * OUT * WIDTH, input_bytes=4 * ROWS * WIDTH, output_bytes=4 * ROWS * OUT)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_hold_and_send_what_the_plan_says(ranks: list[dict[int, dict[str, int]]], world: int) -> None:
    plan = planned(world)
    assert [ranks[rank][world]["weights"] for rank in range(world)] == [plan.weights] * world
    if world == 1:
        assert plan.wire == 0
    else:
        assert ranks[0][world]["wire"] == pytest.approx(plan.wire, rel=0.05)


def test_the_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "plan --members 16 --ranks 64 --team 8 --devices 8 --bytes 350MB --input 38MB --output 128KiB --seconds 0.05"
    )
    assert main(words.split()) == 0
    lines = dict(line.strip().rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    rows = {name.strip(): value for name, value in lines.items()}
    assert rows["members on a rank, at most"] == "2"
    assert rows["weights on a rank"] == "667.6 MiB"
    assert rows["weights on one of its devices"] == "333.8 MiB"
    assert float(rows["ideal speed-up over one process"]) == 128
    assert 1 < float(rows["speed-up over one process"]) < 128


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--members 8 --ranks 6 --team 4 --bytes 1", "teams of 4 don't divide 6 ranks"),
        ("--members 2 --ranks 4 --bytes 1", "4 ranks can't share 2 members"),
        ("--members 0 --ranks 4 --bytes 1", "members=0 is not above 0"),
    ],
)
def test_what_is_no_layout_is_told(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words.split()]) == 2
    assert told in capsys.readouterr().err


def test_a_size_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--members", "8", "--ranks", "4", "--bytes", "many"])
    assert "'many' is no number of bytes" in capsys.readouterr().err


def test_the_ideal_speedup_is_the_number_of_ranks_where_members_divide_evenly() -> None:
    assert [Plan(8, world, world, 1).ideal_speedup for world in (1, 2, 4, 8)] == [1, 2, 4, 8]
    assert Plan(8, 512, 8, 1).ideal_speedup == 512
    assert Plan(9, 4, 4, 1).ideal_speedup == 3
