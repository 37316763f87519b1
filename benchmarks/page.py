"""Put what the benchmarks found into the documentation's page: the table, and the plots beside it.

``python -m benchmarks.page``, after ``python -m benchmarks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.plots import draw
from benchmarks.report import RESULTS
from benchmarks.table import HEADER, read, rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
START, END = "<!-- figures -->\n", "<!-- /figures -->"
PLOTS = ("outputs", "growth")


def filled(page: str, folder: Path = RESULTS) -> str:
    """Return the page's text with the table between its two marks made anew from the JSON of a folder."""
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    return before + START + markdown(folder) + END + after


def markdown(folder: Path) -> str:
    """Return the table of all benchmarks, with a line for each machine on which they ran."""
    lines = ["", "| " + " | ".join(HEADER) + " |", "| --- | --- | --- | --- |"]
    machines: dict[str, list[str]] = {}
    for name, facts in read(folder).items():
        note = f" {facts['note']}" if facts["figures"] and facts["note"] else ""
        lines.append(f"| **{facts['title']}**{note} | | | |")
        lines += ["| " + " | ".join(row) + " |" for row in rows(facts)]
        machines.setdefault(_machine(facts["machine"]), []).append(name)
    lines += [""] + [f"{', '.join(names)}: {machine}." for machine, names in machines.items()] + ["", ""]
    return "\n".join(lines)


def _machine(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "fusion-bench"))
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores{gpu}; Python {machine['python']}, {packages}"


def main() -> None:
    """Write the page and its plots."""
    PAGE.write_text(filled(PAGE.read_text()))
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    found = read(RESULTS)
    for name in PLOTS:
        draw(found[name], folder / f"{name}.png")


if __name__ == "__main__":
    main()
