"""`python -m fusion_ensemble_plugin.demo`, as `make demo` calls it, and the tutorial's script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

REPO = Path(__file__).parent.parent
TASKS = ["mnist", "digits", "faces", "textures"]


def run_python(*arguments: str, cwd: Path) -> str:
    """Run Python in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return what the demo printed, and the folder with its reports."""
    folder = tmp_path_factory.mktemp("demo")
    return run_python("-m", "fusion_ensemble_plugin.demo", "--markdown", cwd=folder), folder / "outputs" / "demo"


@pytest.fixture
def rows(demo: tuple[str, Path]) -> dict[str, dict[str, float]]:
    """Return the table that the demo printed: accuracy in percent by row and column."""
    lines = [line.strip("| ").split(" | ") for line in demo[0].splitlines() if line.startswith("|")]
    columns, _, *cells = lines
    return {row: dict(zip(columns[1:], map(float, values))) for row, *values in cells}


def test_the_table_shows_what_the_command_lines_reports_say(
    demo: tuple[str, Path], rows: dict[str, dict[str, float]]
) -> None:
    reports = [demo[1] / "members" / str(job) for job in range(5)] + [demo[1] / "fused" / str(job) for job in range(2)]
    for row, folder in zip(rows.values(), reports, strict=True):
        report = json.loads((folder / "program_report.json").read_text())
        for column, percent in row.items():
            assert percent == pytest.approx(100 * report[column]["accuracy"], abs=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_a_tower_is_clearly_better_on_its_own_task_than_the_pretrained_one(
    task: str, rows: dict[str, dict[str, float]]
) -> None:
    assert rows[f"{task} alone"][task] >= rows["pretrained"][task] + 10


def test_the_ensemble_is_better_on_average_than_each_member_and_the_average_of_weights(
    rows: dict[str, dict[str, float]],
) -> None:
    ensemble = rows.pop("ensemble")["average"]
    assert ensemble > max(row["average"] for row in rows.values()) + 5


def test_a_run_that_fails_is_shown_with_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()  # a file where the reports should go
    done = subprocess.run(
        [sys.executable, "-m", "fusion_ensemble_plugin.demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert re.search(r"fusion_bench -m method=dummy.*\n?failed; what it printed:\n.*outputs", done.stderr, re.S)


def test_the_tutorials_script_prints_the_ensembles_accuracies(
    tmp_path: Path, rows: dict[str, dict[str, float]]
) -> None:
    printed = run_python(str(REPO / "examples/ensemble/parallel_ensemble.py"), cwd=tmp_path)
    accuracies = dict(re.findall(r"^(\w+) +accuracy (\d\.\d+),", printed, re.M))
    assert {task: float(value) for task, value in accuracies.items()} == {
        column: pytest.approx(percent / 100, abs=0.001) for column, percent in rows["ensemble"].items()
    }


def test_the_readme_shows_the_demos_table(demo: tuple[str, Path]) -> None:
    shown = re.search(r"<!-- demo -->\n(.*)\n<!-- /demo -->", (REPO / "README.md").read_text(), re.S)
    assert shown is not None
    columns = shown[1].splitlines()[0]
    assert columns in demo[0]  # accuracies depend on the machine's rounding; rows do not
    assert [line.split("|")[1] for line in shown[1].splitlines()] == [
        line.split("|")[1] for line in demo[0].splitlines() if line.startswith("|")
    ]
