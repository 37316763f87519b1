"""The benchmarks: those of their figures that don't depend on the machine, and that all of them run and are kept."""

from __future__ import annotations

import doctest
import json
import math
import os
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

REPO = Path(__file__).parent.parent
COUNTS = (2, 8, 16, 32)
LINUX_ONLY = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read in /proc")


@pytest.fixture(scope="module", autouse=True)
def benchmarks_can_be_imported() -> Iterator[None]:
    """The benchmarks are no part of what is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO)
        yield


def benchmark(name: str) -> Any:
    return import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def outputs_alive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """Return the most outputs in memory by number of members, measured in a process whose heap is its own."""
    folder = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "-m", "benchmarks.outputs", "--results", str(folder)]
    subprocess.run(command, cwd=REPO, capture_output=True, check=False)
    lines = json.loads((folder / "outputs.json").read_text())["series"]["lines"]
    return {name: {int(count): value for count, value in line.items()} for name, line in lines.items()}


@LINUX_ONLY
@pytest.mark.slow
def test_at_most_three_outputs_exist_at_a_time(outputs_alive: dict[str, dict[int, float]]) -> None:
    assert {count: value <= 3 for count, value in outputs_alive["one place"].items()} == dict.fromkeys(COUNTS, True)


@LINUX_ONLY
@pytest.mark.slow
def test_at_most_three_outputs_exist_at_a_time_on_each_lane(outputs_alive: dict[str, dict[int, float]]) -> None:
    assert {count: value <= 6 for count, value in outputs_alive["2 lanes"].items()} == dict.fromkeys(COUNTS, True)


@LINUX_ONLY
@pytest.mark.slow
def test_fusionbench_holds_two_outputs_a_member_and_one(outputs_alive: dict[str, dict[int, float]]) -> None:
    assert outputs_alive["FusionBench"] == {count: 2 * count + 1 for count in COUNTS}


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_eight_sleeping_members_on_eight_lanes_take_the_time_of_one() -> None:
    (figure,) = benchmark("sleepers").measure(Namespace(rounds=1)).figures
    assert figure.value < 2  # 1.15 is for a quiet machine
    assert figure.host > 7.5


def quick_names() -> list[str]:
    """Return the benchmarks that need neither trained models nor processes of their own."""
    return [name for name in benchmark("table").NAMES if name not in ("selection", "report_cache", "ranks")]


@LINUX_ONLY
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_benchmarks_smallest_setting_runs_and_keeps_figures_plot_and_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), "--only", *quick_names()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = benchmark("table").read(tmp_path)
    assert sorted(found) == sorted(quick_names())
    for name, facts in found.items():
        check_facts(facts, (tmp_path / f"{name}.json").read_text())
        assert (tmp_path / f"{name}.png").exists() == bool(facts["figures"])
    check_table(found, done.stdout)
    check_offloaded(found["offload"])
    if not torch.cuda.is_available():
        assert [row[2] for row in benchmark("table").rows(found["accelerator"])] == ["no GPU"]


def check_facts(facts: dict[str, Any], text: str) -> None:
    assert facts["quick"] is True
    assert facts["machine"]["cpu"]
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["torch"] == torch.__version__
    assert socket.gethostname() not in text
    assert all(math.isfinite(figure["value"]) for figure in facts["figures"])


def check_table(found: dict[str, Any], printed: str) -> None:
    """All figures are in the one table at the end."""
    table = printed[printed.index("FusionBench's ensemble") :]
    assert [row[0] for facts in found.values() for row in benchmark("table").rows(facts) if row[0] not in table] == []


def check_offloaded(facts: dict[str, Any]) -> None:
    """A pool larger than memory keeps four members at most, and gives the same bits."""
    figures = {figure["name"]: figure["value"] for figure in facts["figures"]}
    assert figures["resident while running"] <= 4
    assert figures["resident while loading"] <= 4
    assert figures["outputs that are not bit-equal"] == 0


@pytest.mark.parametrize(("value", "quick", "status"), [(1.0, False, 0), (1.2, False, 1), (1.2, True, 0)])
def test_a_missed_limit_fails_a_run_that_is_not_a_quick_one(
    value: float, quick: bool, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = benchmark("report")
    found = report.Result("a title", [report.Figure("a ratio", value, limit=1.1, host=2.0)])
    arguments = ["--results", str(tmp_path), *["--quick"] * quick]
    assert report.run("sleepers", lambda asked: found, 3, arguments) == status
    assert ("missed" in capsys.readouterr().out) == (value > 1.1)
    (row,) = benchmark("table").rows(json.loads((tmp_path / "sleepers.json").read_text()))
    assert row == ("a ratio", "≤ 1.1", "1" if value == 1 else "1.2 (missed)", "2")


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_must_be_one_or_more(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark("sleepers").main(["--rounds", rounds])
    assert "1 or more" in capsys.readouterr().err


def test_the_documentations_table_is_made_from_the_committed_results() -> None:
    page = benchmark("page")
    assert page.PAGE.read_text() == page.filled(page.PAGE.read_text())
    assert all((page.PAGE.with_suffix("") / f"{name}.png").exists() for name in page.PLOTS)


def test_the_committed_results_are_of_whole_runs_of_all_benchmarks() -> None:
    found = benchmark("table").read(benchmark("report").RESULTS)
    assert sorted(found) == sorted(benchmark("table").NAMES)
    assert [name for name, facts in found.items() if facts["quick"]] == []


@pytest.mark.parametrize("name", ["measuring", "report"])
def test_examples_in_the_benchmarks_docstrings_are_true(name: str) -> None:
    found = doctest.testmod(benchmark(name))
    assert found.attempted > 0
    assert found.failed == 0
