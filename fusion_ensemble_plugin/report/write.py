"""The report for people and programs: JSON, a Markdown table, plots, and the same table on screen."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from fusion_ensemble_plugin.report.compare import Comparison
from fusion_ensemble_plugin.report.entries import ENSEMBLE, WEIGHT_AVERAGE
from fusion_ensemble_plugin.report.metrics import reliability
from fusion_ensemble_plugin.report.metrics_diversity import disagreement
from fusion_ensemble_plugin.report.plots import (
    accuracy_by_members,
    accuracy_by_task,
    agreement_matrix,
    reliability_diagram,
    save,
)

log = logging.getLogger(__name__)

JSON = "ensemble_report.json"
MARKDOWN = "ensemble_report.md"


def write_report(comparison: Comparison, folder: Path, pictures: bool = True) -> dict[str, Any]:
    """Write all files to a folder; one that can't be written costs a message, and the others are written.

    Returns:
        The report as plain data.
    """
    content = comparison.content()
    tasks: list[Callable[[], object]] = [
        lambda: folder.mkdir(parents=True, exist_ok=True),
        lambda: (folder / JSON).write_text(json.dumps(finite(content), indent=2) + "\n"),
        lambda: (folder / MARKDOWN).write_text(markdown(content)),
        *[
            lambda name=name, draw=draw: save(draw(), folder / name)
            for name, draw in (plots(comparison) if pictures else [])
        ],
    ]
    for task in tasks:
        try:
            task()
        except OSError as error:
            log.error("part of the report could not be written: %s", error)
    return content


def plots(comparison: Comparison) -> list[tuple[str, Callable[[], Figure]]]:
    """Return the name of each picture that can be drawn, and what draws it."""
    if not comparison.observed:
        return []
    members = [f"member/{name}" for name in comparison.names]
    shown = [name for name in (*members, ENSEMBLE, WEIGHT_AVERAGE) if name in comparison.plan]
    drawn: list[tuple[str, Callable[[], Figure]]] = [
        (
            "accuracy_by_task.png",
            lambda: accuracy_by_task(
                {_short(name): {t: comparison.interval(name, [t]) for t in comparison.observed} for name in shown}
            ),
        ),
        *[
            (
                f"reliability_{_file(task)}.png",
                lambda task=task: reliability_diagram(
                    {_short(n): reliability(comparison.probabilities(n, task), comparison.labels(task)) for n in shown}
                ),
            )
            for task in comparison.observed
        ],
    ]
    if len(members) > 1:
        drawn.append(("agreement.png", lambda: agreement_matrix(_disagreement(comparison), comparison.names)))
        drawn.append(("accuracy_by_members.png", lambda: accuracy_by_members(sizes(comparison))))
    return drawn


def sizes(comparison: Comparison) -> dict[int, list[float]]:
    """Return the accuracies of all ensembles that are combined alike, by their number of members."""
    found: dict[int, list[float]] = {}
    for name, entry in comparison.plan.items():
        if entry.kind in ("member", "ensemble", "without", "subset"):
            found.setdefault(len(entry.members), []).append(comparison.interval(name, comparison.observed).value)
    return found


def rows(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the table's head and its rows."""
    tasks = content["tasks"]
    extra = [m for m in ("nll", "brier", "ece") if any(m in model["average"] for model in content["models"].values())]
    body = []
    for name, model in content["models"].items():
        accuracies = [model["tasks"][task].get("accuracy") for task in tasks]
        average = model["average"]
        interval = average.get("accuracy_interval")
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        cells = [_number(value) for value in accuracies] + [_number(average.get("accuracy")) + ends]
        body.append([_short(name), *cells, *[_number(average.get(metric)) for metric in extra]])
    return ["model", *tasks, "average accuracy", *extra], body


def sentences(content: dict[str, Any]) -> list[str]:
    """Return what the numbers say, in words."""
    said = []
    gain, average = content["gain_over_best_member"], content["gain_over_weight_average"]
    for over, found in ((f"its best member, {gain['member']}" if gain else "", gain), ("the weight average", average)):
        if found:
            said.append(f"The ensemble's accuracy over {over}: {_interval(found)}.")
    for name, loss in content["loss_without_member"].items():
        said.append(f"Without {name} the ensemble loses {_interval(loss)}.")
    said += [f"Not in this report: {what}: {why}." for what, why in content["skipped"].items()]
    return said


def markdown(content: dict[str, Any]) -> str:
    """Return the report as a Markdown page."""
    head, body = rows(content)
    lines = ["# Ensemble report", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, body), ""]
    settings = content["settings"]
    notes = f"Intervals: {settings['confidence']:.0%}, bootstrap by sample. ECE: {settings['ece']}."
    return "\n".join([*lines, *[f"- {sentence}" for sentence in sentences(content)], "", notes, ""])


def table(content: dict[str, Any]) -> Table:
    """Return the report as a table for the screen."""
    head, body = rows(content)
    made = Table(*head, title="Ensemble report", caption="\n".join(sentences(content)), caption_justify="left")
    for row in body:
        made.add_row(*row)
    return made


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _interval(found: dict[str, Any]) -> str:
    noise = "; this may be noise" if found["may_be_noise"] else ""
    return f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{noise}"


def _disagreement(comparison: Comparison) -> Any:
    each = [disagreement(comparison.members(task)) for task in comparison.observed]
    return sum(each) / len(each)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(name: str) -> str:
    return name.removeprefix("member/").replace("/", " ").replace("_", " ") if "/" in name else name.replace("_", " ")


def _file(task: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in task)
