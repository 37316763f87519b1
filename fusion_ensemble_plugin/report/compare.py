"""The report's numbers, from what was observed of each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.report.bootstrap import CONFIDENCE, RESAMPLES, Interval, gain_over_best, mean_interval
from fusion_ensemble_plugin.report.decomposition import ambiguity, jensen_gap
from fusion_ensemble_plugin.report.entries import ENSEMBLE, Entry
from fusion_ensemble_plugin.report.metrics import (
    BINS,
    brier_score,
    calibration_error,
    correct,
    negative_log_likelihood,
)
from fusion_ensemble_plugin.report.metrics_diversity import (
    disagreement,
    mutual_information,
    oracle_accuracy,
    pooled,
    predictive_entropy,
)
from fusion_ensemble_plugin.report.progress import Evaluated

NO_TASKS = ("average", "model_info")

OF_MODELS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "ece": calibration_error,
}
"""Metrics of one model's probabilities, (samples, classes), and labels."""

OF_MEMBERS: Mapping[str, Callable[[Tensor, Tensor, Sequence[float]], Any]] = {
    "predictive_entropy": lambda p, labels, w: predictive_entropy(pooled(p, w)).mean().item(),
    "mutual_information": lambda p, labels, w: mutual_information(p, w).mean().item(),
    "oracle_accuracy": lambda p, labels, w: oracle_accuracy(p, labels).item(),
    "ambiguity": lambda p, labels, w: ambiguity(p, labels, w)._asdict(),
    "jensen_gap": lambda p, labels, w: jensen_gap(p, labels, w),
    "disagreement": lambda p, labels, w: disagreement(p).tolist(),
}
"""Metrics of all members' probabilities, (members, samples, classes), labels and weights."""

METRICS = (*OF_MODELS, *OF_MEMBERS)


class Comparison:
    """Computes the report.

    Args:
        names: The members' names.
        weights: Their weights in the ensemble.
        plan: What was evaluated.
        done: What is known of each.
        skipped: What could not be evaluated, and why.
        metrics: Names out of `METRICS`.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        plan: Mapping[str, Entry],
        done: Mapping[str, Evaluated],
        skipped: Mapping[str, str],
        metrics: Sequence[str] = METRICS,
        seed: int = 0,
    ) -> None:
        self.names = list(names)
        self.weights = list(weights)
        self.plan = plan
        self.done = done
        self.skipped = dict(skipped)
        self.metrics = list(metrics)
        self.seed = seed
        self.tasks = task_names(done[ENSEMBLE].report)
        self.observed = [task for task in self.tasks if all(task in done[name].scores for name in plan)]
        without = [task for task in self.tasks if task not in self.observed]
        if without:
            self.skipped["metrics of probabilities"] = (
                f"no class scores and labels could be observed for {', '.join(without)}; what the task pool reports of "
                "them is shown"
            )
        if len(self.names) == 1:
            self.skipped["comparisons"] = "the pool has one member: the ensemble is that member"

    def content(self) -> dict[str, Any]:
        """Return the whole report as plain data."""
        shares = [weight / sum(self.weights) for weight in self.weights] if sum(self.weights) else self.weights
        return {
            "members": dict(zip(self.names, shares)),
            "tasks": self.tasks,
            "models": {name: self._model(name) for name in self.plan},
            "gain_over_best_member": self._gain(),
            "gain_over_weight_average": self._difference(ENSEMBLE, "weight_average"),
            "loss_without_member": self._without(),
            "members_together": {task: self._together(task) for task in self.observed} if len(self.names) > 1 else {},
            "skipped": self.skipped,
            "settings": {
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "seed": self.seed,
                "ece": f"{BINS} bins of equal width, L1 norm, of the predicted class",
                "mutual_information": "in nats, of the members' class probabilities with the ensemble's weights",
            },
        }

    def probabilities(self, name: str, task: str) -> Tensor:
        """Return a model's class probabilities, (samples, classes), float64."""
        return self.done[name].scores[task].logits.double().softmax(dim=-1)

    def labels(self, task: str) -> Tensor:
        """Return a task's true classes, (samples,)."""
        return self.done[ENSEMBLE].scores[task].labels

    def right(self, name: str, task: str) -> Tensor:
        """Return 1 for each sample that a model gets right, else 0, (samples,)."""
        return correct(self.probabilities(name, task), self.labels(task)).double()

    def interval(self, name: str, tasks: Sequence[str]) -> Interval:
        """Return a model's mean accuracy over tasks."""
        return mean_interval(*[self.right(name, task) for task in tasks], seed=self.seed)

    def members(self, task: str) -> Tensor:
        """Return the members' class probabilities, (members, samples, classes)."""
        return torch.stack([self.probabilities(f"member/{name}", task) for name in self.names])

    def _model(self, name: str) -> dict[str, Any]:
        entry = self.plan[name]
        tasks = {task: self._task(name, task) for task in self.tasks}
        accuracies = [row["accuracy"] for row in tasks.values() if "accuracy" in row]
        average: dict[str, Any] = {"accuracy": sum(accuracies) / len(accuracies)} if accuracies else {}
        if self.observed and self.observed == self.tasks:
            average["accuracy_interval"] = list(self.interval(name, self.tasks)[1:])
        for metric in (m for m in OF_MODELS if m in self.metrics and self.observed == self.tasks):
            average[metric] = sum(row[metric] for row in tasks.values()) / len(tasks)
        return {
            "kind": entry.kind,
            "members": [self.names[index] for index in entry.members],
            "tasks": tasks,
            "average": average,
        }

    def _task(self, name: str, task: str) -> dict[str, Any]:
        report = self.done[name].report
        row = numbers(report.get(task, report if task == "report" else {}))
        if task in self.observed:
            row["accuracy_interval"] = list(self.interval(name, [task])[1:])
            probabilities, labels = self.probabilities(name, task), self.labels(task)
            row.update({m: f(probabilities, labels).item() for m, f in OF_MODELS.items() if m in self.metrics})
        return row

    def _gain(self) -> dict[str, Any] | None:
        if not self.observed or len(self.names) == 1:
            return None
        members = [torch.stack([self.right(f"member/{name}", task) for name in self.names]) for task in self.observed]
        gain = gain_over_best([self.right(ENSEMBLE, task) for task in self.observed], members, seed=self.seed)
        return {"member": self.names[gain.best], **gain.gain._asdict(), "may_be_noise": gain.gain.holds_zero}

    def _difference(self, left: str, right: str) -> dict[str, Any] | None:
        """Return how much more accurate one model is than another, paired by sample."""
        if not self.observed or left not in self.plan or right not in self.plan:
            return None
        pairs = [self.right(left, task) - self.right(right, task) for task in self.observed]
        found = mean_interval(*pairs, seed=self.seed)
        return {**found._asdict(), "may_be_noise": found.holds_zero}

    def _without(self) -> dict[str, Any]:
        found = {name: self._difference(ENSEMBLE, f"without/{name}") for name in self.names}
        return {name: loss for name, loss in found.items() if loss is not None}

    def _together(self, task: str) -> dict[str, Any]:
        probabilities, labels = self.members(task), self.labels(task)
        if min(self.weights) < 0:
            return {"skipped": "weights below 0 are no shares"}
        return {m: f(probabilities, labels, self.weights) for m, f in OF_MEMBERS.items() if m in self.metrics}


def task_names(report: Any) -> list[str]:
    """Return the tasks of a task pool's report; one that is of a single task has the task "report"."""
    tasks = [name for name, entry in report.items() if name not in NO_TASKS and isinstance(entry, Mapping)]
    return tasks or ["report"]


def numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is a metric in a task's report."""
    return {name: float(value) for name, value in entry.items() if type(value) in (int, float)}
