"""What is to be as good as possible: a metric in the report of a task pool."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

DIRECTIONS = ("auto", "max", "min")
LESS_IS_BETTER = ("loss", "error", "err", "perplexity", "nll", "brier", "ece", "mae", "mse", "rmse")
"""Words in a metric's name by which ``direction="auto"`` knows that less is better."""

NO_TASKS = ("average", "model_info")
"""Entries of a report that are none of its tasks."""


@dataclass(frozen=True)
class Objective:
    """A metric, as a mean over tasks.

    Args:
        metric: Its name in the report's tasks, such as "accuracy" or "loss".
        tasks: The tasks that count; None for all that have the metric.
        direction: "max", "min", or "auto": by the metric's name.

    Raises:
        ValueError: If the direction is unknown, or the tasks are none.

    Examples:
        >>> report = {"mnist": {"accuracy": 0.9}, "digits": {"accuracy": 0.7}, "average": {"accuracy": 0.8}}
        >>> Objective("accuracy").value(report)
        0.8
    """

    metric: str
    tasks: Sequence[str] | None = None
    direction: str = "auto"

    def __post_init__(self) -> None:
        problems = []
        if not (isinstance(self.metric, str) and self.metric):
            problems.append(f"metric={self.metric!r}: the name of a metric in the task pool's report is needed")
        if self.direction not in DIRECTIONS:
            problems.append(f"direction={self.direction!r}: needed is one of {', '.join(DIRECTIONS)}")
        if self.tasks is not None and (isinstance(self.tasks, str) or not list(self.tasks)):
            problems.append(f"tasks={self.tasks!r}: a list of task names is needed, or null for all")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def more_is_better(self) -> bool:
        """Whether the metric is to be large."""
        words = self.metric.lower().replace("-", "_").replace(",", "_").split("_")
        return self.direction == "max" or (self.direction == "auto" and not set(words) & set(LESS_IS_BETTER))

    def score(self, report: Mapping[str, Any]) -> float:
        """Return a number of which more is better; minus infinity if the metric is not a number."""
        value = self.value(report)
        return -math.inf if math.isnan(value) else value if self.more_is_better else -value

    def value(self, report: Mapping[str, Any]) -> float:
        """Return the metric's mean over the tasks.

        Raises:
            ValueError: If a task that counts is not in the report or lacks the metric, or if no task has it.
        """
        values = self.by_task(report)
        return sum(values.values()) / len(values)

    def by_task(self, report: Mapping[str, Any]) -> dict[str, float]:
        """Return the metric of each task that counts; raises as `value` does."""
        metrics = _metrics(report)
        wanted = list(metrics if self.tasks is None else self.tasks)
        unknown = [task for task in wanted if task not in metrics]
        without = [task for task in wanted if task in metrics and self.metric not in metrics[task]]
        if unknown:
            raise ValueError(f"no task {', '.join(map(repr, unknown))} in the report; it has {_listed(metrics)}")
        if without and (self.tasks is not None or len(without) == len(wanted)):
            there = dict.fromkeys(name for numbers in metrics.values() for name in numbers)
            raise ValueError(f"no metric {self.metric!r} of {_listed(without)}; the report has {_listed(there)}")
        if without:
            _tell_left_out(self.metric, tuple(without))
        return {task: metrics[task][self.metric] for task in wanted if task not in without}


@cache
def _tell_left_out(metric: str, tasks: tuple[str, ...]) -> None:
    """Say once which tasks don't count."""
    log.warning("left out, as their reports have no %r: %s", metric, ", ".join(tasks))


def _metrics(report: Any) -> dict[str, dict[str, float]]:
    """Return each task's metrics; a report that is one task's has the task ``report``."""
    if not isinstance(report, Mapping):
        raise ValueError(
            f"the task pool's evaluate returned {report!r}, not a report, so there is nothing to choose by"
        )
    tasks = {task: entry for task, entry in report.items() if task not in NO_TASKS and isinstance(entry, Mapping)}
    return {task: _numbers(entry) for task, entry in (tasks or {"report": report}).items()}


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a metric in a task's report."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if not isinstance(value, bool)}


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"
