"""What every benchmark shares: its arguments, the table on screen, the JSON and the plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
QUICK_ROUNDS = 2


@dataclass
class Figure:
    """One measured number.

    Attributes:
        name: What was measured.
        value: The number for this package.
        unit: Its unit; "" for a plain ratio.
        limit: What it must not exceed; None if it is only reported.
        host: The same for FusionBench's own ensemble, measured in the same run; None if it has none.
    """

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    host: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the value is within its limit; None without one."""
        return None if self.limit is None else self.value <= self.limit


@dataclass
class Series:
    """Lines of a plot: name of the line to its points, ``{x: y}``."""

    x: str
    y: str
    lines: dict[str, dict[int, float]]


@dataclass
class Result:
    """What a benchmark found.

    Attributes:
        title: What was compared with what, in a sentence.
        figures: The numbers; none if they cannot be measured here.
        note: What a reader must know of this run, such as "no GPU".
        samples: The single measurements behind the numbers.
        series: Lines to plot; without, the figures are plotted as bars.
    """

    title: str
    figures: list[Figure] = field(default_factory=list)
    note: str = ""
    samples: dict[str, Any] = field(default_factory=dict)
    series: Series | None = None


Options = Callable[[argparse.ArgumentParser], None]


def run(
    name: str,
    measure: Callable[[argparse.Namespace], Result],
    rounds: int,
    arguments: Sequence[str] | None = None,
    options: Options | None = None,
) -> int:
    """Run a benchmark from the command line.

    Args:
        name: Its module's name.
        measure: What measures.
        rounds: How many rounds it measures if the command line does not say.
        arguments: The command line's arguments; default: this process's.
        options: Adds the benchmark's own options.

    Returns:
        1 if a limit is missed, else 0. A quick run shows that the benchmark works; its times mean little, and its exit
        status is 0.
    """
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.{name}", description=sys.modules[measure.__module__].__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a small run that shows that all works; keeps no results")
    parser.add_argument(
        "--rounds", type=_at_least_one, help=f"measured rounds (default: {rounds}; quick: {QUICK_ROUNDS})"
    )
    parser.add_argument("--results", type=Path, help="where figures and plot go (default: benchmarks/results)")
    if options is not None:
        options(parser)
    asked = parser.parse_args(arguments)
    asked.rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else rounds)
    facts = {"benchmark": name, "quick": asked.quick, "machine": machine()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit")  # which FusionBench's ensemble runs on
        result = measure(asked)
    Console(width=None if sys.stdout.isatty() else 120).print(table(name, result))
    if folder := asked.results or (None if asked.quick else RESULTS):
        write(folder / f"{name}.json", {**facts, **as_json(result)})
    return int(not asked.quick and any(figure.reached is False for figure in result.figures))


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds: 1 or more")
    return int(text)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run one of the benchmarks in a process that was made for it; ends the process."""
    raise SystemExit(import_module(f"benchmarks.{name}").main(arguments))


def machine() -> dict[str, Any]:
    """Tell what a reader must know of the machine to compare; no names and no paths."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "fusion-bench")},
    }


def table(name: str, result: Result) -> Table:
    """Return the figures as a table for the screen."""
    grid = Table("figure", "here", "FusionBench", "to reach", "", title=f"{name}: {result.title}", title_justify="left")
    grid.caption = result.note or None
    for figure in result.figures:
        mark = {True: "[green]reached", False: "[red]missed", None: ""}[figure.reached]
        grid.add_row(figure.name, *cells(figure), mark)
    return grid


def cells(figure: Figure) -> tuple[str, str, str]:
    """Return a figure's value, the host's and the limit as text."""
    return (
        show(figure.value, figure.unit),
        show(figure.host, figure.unit),
        "" if figure.limit is None else f"≤ {show(figure.limit, figure.unit)}",
    )


def show(value: float | None, unit: str) -> str:
    """Write a number with its unit.

    Examples:
        >>> show(1.02345, ""), show(12.0, "members"), show(0.03217, "s"), show(None, "s")
        ('1.023', '12 members', '0.0322 s', '')
    """
    if value is None:
        return ""
    return f"{value:.{4 if abs(value) >= 1 else 3}g} {unit}".rstrip()


def as_json(result: Result) -> dict[str, Any]:
    """Return a result as plain data."""
    figures = [{**asdict(figure), "reached": figure.reached} for figure in result.figures]
    return {**asdict(result), "figures": figures}


def write(path: Path, facts: dict[str, Any]) -> None:
    """Write the figures and their plot beside each other."""
    from benchmarks.plots import draw

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n")
    draw(facts, path.with_suffix(".png"))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
