"""One table of what all benchmarks found, from their JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import Figure, cells

NAMES = (
    "sleepers",
    "sequential",
    "lanes",
    "outputs",
    "offload",
    "growth",
    "selection",
    "report_cache",
    "ranks",
    "accelerator",
)
HEADER = ("figure", "to reach", "measured", "FusionBench's ensemble")
MISSED = " (missed)"

Row = tuple[str, str, str, str]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each benchmark has written to a folder, by name; those not there are left out."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def rows(facts: Mapping[str, Any]) -> list[Row]:
    """Return a benchmark's rows; if it has no figures, one that says why."""
    if not facts["figures"]:
        return [(facts["title"], "", facts["note"], "")]
    return [_row(Figure(**{key: found[key] for key in Figure.__annotations__})) for found in facts["figures"]]


def _row(figure: Figure) -> Row:
    value, host, limit = cells(figure)
    return figure.name, limit, value + MISSED * (figure.reached is False), host


def on_screen(folder: Path) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for name, facts in read(folder).items():
        table.add_section()
        table.add_row(f"[bold]{name}: {facts['title']}")
        for row in rows(facts):
            table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
