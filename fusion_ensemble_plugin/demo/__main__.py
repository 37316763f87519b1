"""The main job on the offline benchmark, from the command line to a table.

Each row comes from the report that ``fusion_bench`` wrote: for every member alone, for FusionBench's average of the
members' weights, and for our ensemble.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fusion_ensemble_plugin.demo.data import TASKS
from fusion_ensemble_plugin.demo.store import models_folder
from fusion_ensemble_plugin.demo.training import PRETRAINED

BENCHMARK = (
    "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4",
    "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4",
)
MEMBER = "modelpool.models._pretrained_.pretrained_model_name_or_path.name"
Accuracies = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table.

    Args:
        arguments: The words after the program's name; None for the process's own.

    Returns:
        The exit status: 0, or that of the run that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m fusion_ensemble_plugin.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for the reports; %(default)s")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    models_folder()  # trains, with a progress bar, if need be
    try:
        rows = evaluate(options.output)
    except subprocess.CalledProcessError as error:
        print(f"{shlex.join(error.cmd)}\nfailed; what it printed:\n{error.stdout}", file=sys.stderr)
        return error.returncode
    Console().print(markdown(rows) if options.markdown else table(rows), soft_wrap=options.markdown)
    return 0


def evaluate(output: Path) -> dict[str, Accuracies]:
    """Run FusionBench's command line and return each row's accuracies.

    Args:
        output: The folder for the reports.

    Raises:
        subprocess.CalledProcessError: If a run fails; has what it printed.
    """
    members = {PRETRAINED: "pretrained", **{task: f"{task} alone" for task in TASKS}}
    fused = {"simple_average": "average of weights", "ensemble/simple_ensemble": "ensemble"}
    return {
        **_sweep(output / "members", ["method=dummy", f"{MEMBER}={','.join(members)}"], list(members.values())),
        **_sweep(output / "fused", [f"method={','.join(fused)}"], list(fused.values())),
    }


def _sweep(output: Path, overrides: Sequence[str], rows: Sequence[str]) -> dict[str, Accuracies]:
    """Run one sweep; its jobs are the rows."""
    folders = [f"hydra.sweep.dir={output}", f"path.log_dir={output}/${{hydra:job.num}}"]
    command = [str(Path(sysconfig.get_path("scripts")) / "fusion_bench"), "-m", *overrides, *BENCHMARK]
    print(f"$ {shlex.join(['fusion_bench', *command[1:]])}", flush=True)
    subprocess.run([*command, *folders], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return {row: accuracies(output / str(job) / "program_report.json") for job, row in enumerate(rows)}


def accuracies(report: Path) -> Accuracies:
    """Read each task's accuracy, and their average, from a report of FusionBench."""
    figures: dict[str, Any] = json.loads(report.read_text())
    return {task: figures[task]["accuracy"] for task in (*TASKS, "average")}


def table(rows: Mapping[str, Accuracies]) -> Table:
    """Lay the rows out for a terminal, accuracies in percent."""
    shown = Table("accuracy, %", title="clip-vit-tiny_TA4")
    for column in (*TASKS, "average"):
        shown.add_column(column, justify="right")
    for row, cells in rows.items():
        shown.add_row(
            row, *(f"{100 * value:.1f}" for value in cells.values()), style="bold" if row == "ensemble" else ""
        )
    return shown


def markdown(rows: Mapping[str, Accuracies]) -> str:
    """Lay the rows out as a Markdown table, accuracies in percent."""
    columns = ["accuracy, %", *TASKS, "average"]
    lines = [[row, *(f"{100 * value:.1f}" for value in cells.values())] for row, cells in rows.items()]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *lines])


if __name__ == "__main__":
    sys.exit(main())
