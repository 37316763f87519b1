"""The report's pictures. Each function makes one figure from plain numbers; `save` writes it.

Figures are objects of their own, drawn by matplotlib's Agg renderer: no window, no global state, and none of a
notebook's settings changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from fusion_ensemble_plugin.report.bootstrap import Interval
from fusion_ensemble_plugin.report.metrics import Reliability

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""

MARKERS = "osD^vPX*"
GUIDE = {"color": "0.5", "linestyle": "--", "linewidth": 1}


def accuracy_by_task(rows: Mapping[str, Mapping[str, Interval]], confidence: float = 0.95) -> Figure:
    """Draw each model's accuracy on each task, with its confidence interval.

    Args:
        rows: Model (member, ensemble, weight average) to task to accuracy; a model may lack tasks.
        confidence: What the intervals hold, as a share.
    """
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row))
    figure = Figure(figsize=(max(6.0, 0.5 * len(tasks) * (1 + 0.3 * len(rows))), 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, row) in enumerate(rows.items()):
        offset = 0.8 * ((number + 0.5) / len(rows) - 0.5)
        found = [(tasks.index(task) + offset, interval) for task, interval in row.items()]
        axes.errorbar(
            [place for place, _ in found],
            [interval.value for _, interval in found],
            [[i.value - i.low for _, i in found], [i.high - i.value for _, i in found]],
            label=name,
            color=COLOURS[number % len(COLOURS)],
            fmt=MARKERS[number % len(MARKERS)],
            markersize=6,
            capsize=2,
        )
    crowded: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(tasks) > 5 else {}
    axes.set_xticks(range(len(tasks)), tasks, **crowded)
    for border in range(1, len(tasks)):
        axes.axvline(border - 0.5, color="0.85", linewidth=1)
    axes.set_title(f"Accuracy by task, with {confidence:.0%} intervals")
    _percent(axes)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def reliability_diagram(models: Mapping[str, Reliability]) -> Figure:
    """Draw accuracy against confidence, and how many samples have that confidence.

    Args:
        models: Model to its bins; the legend has its expected calibration error.
    """
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], label="perfectly calibrated", **GUIDE)
    for number, (name, bins) in enumerate(models.items()):
        filled = bins.samples > 0
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        label = f"{name} (ECE {bins.error.item():.3f})"
        confidence = bins.confidence[filled].tolist()
        axes.plot(confidence, bins.accuracy[filled].tolist(), label=label, **style)
        share = bins.samples / bins.samples.sum()
        below.plot(confidence, share[filled].tolist(), **style)
    axes.set(title="Reliability", xlim=(0, 1))
    _percent(axes)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    below.set_xlabel("confidence: probability of the predicted class")
    below.set_ylabel("share of samples")
    below.yaxis.set_major_formatter(PercentFormatter(1))
    below.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def agreement_matrix(disagreement: Tensor, names: Sequence[str]) -> Figure:
    """Draw the share of samples on which two members predict the same class, for every pair.

    Args:
        disagreement: The share on which they differ, (members, members).
        names: The members' names.
    """
    agreement = (1 - disagreement).tolist()
    side = 2.5 + 0.55 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(agreement, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    for row, values in enumerate(agreement):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", color="black" if value > 0.5 else "white")
    axes.set_title("How often members predict the same class")
    figure.colorbar(image, format=PercentFormatter(1), shrink=0.8)
    return figure


def accuracy_by_members(accuracies: Mapping[int, Sequence[float]]) -> Figure:
    """Draw the accuracy of ensembles against their number of members: the mean, and the range over which members.

    Args:
        accuracies: Number of members to the accuracies of the ensembles of that size.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(accuracies)
    values = [accuracies[size] for size in sizes]
    means = [sum(each) / len(each) for each in values]
    lowest, highest = [min(each) for each in values], [max(each) for each in values]
    axes.fill_between(sizes, lowest, highest, color=COLOURS[0], alpha=0.2, label="range over the choice of members")
    axes.plot(sizes, means, color=COLOURS[0], marker="o", label="mean")
    axes.set_xlabel("members")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Accuracy against the number of members")
    _percent(axes)
    axes.legend(frameon=False)
    return figure


def save(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Write a figure as PNG, the same bytes for the same figure, and return where it is.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, format="png", metadata={"Software": None})
    return path


def _percent(axes: Axes) -> None:
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
