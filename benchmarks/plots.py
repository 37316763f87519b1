"""The plot of a benchmark's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, HOST, LIMIT = "#1f77b4", "#bbbbbb", "#d62728"


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Draw a benchmark's lines, or its figures as bars; nothing if it has none."""
    if not facts["figures"]:
        path.unlink(missing_ok=True)
        return
    rows = len(facts["figures"])
    figure = Figure(figsize=(8, 4.2 if facts["series"] else 1.3 + 0.45 * rows), layout="constrained")
    axes = figure.add_subplot()
    if facts["series"]:
        _lines(axes, facts["series"])
    else:
        _bars(axes, facts["figures"])
    axes.set_title(facts["title"], fontsize=9, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _lines(axes: Axes, series: Mapping[str, Any]) -> None:
    for name, points in series["lines"].items():
        axes.plot([int(x) for x in points], list(points.values()), marker="o", label=name)
    ticks = sorted({int(x) for points in series["lines"].values() for x in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set(xlabel=series["x"], ylabel=series["y"])
    axes.legend(frameon=False)


def _bars(axes: Axes, figures: list[dict[str, Any]]) -> None:
    for row, figure in enumerate(figures):
        axes.barh(row - 0.2, figure["value"], 0.4, color=OURS, label=None if row else "this package")
        if figure["host"] is not None:
            axes.barh(row + 0.2, figure["host"], 0.4, color=HOST)
        if figure["limit"] is not None:
            axes.plot([figure["limit"]] * 2, [row - 0.4, row + 0.4], color=LIMIT)
    axes.barh(0, 0, color=HOST, label="FusionBench")
    axes.plot([], [], color=LIMIT, label="to reach")
    axes.set_yticks(range(len(figures)), [f"{f['name']}{', ' + f['unit'] if f['unit'] else ''}" for f in figures])
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
