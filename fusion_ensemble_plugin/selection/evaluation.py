"""Evaluating one ensemble with many weights, or reducers, by a task pool."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm.auto import tqdm

from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.selection.objective import Objective

HOST = "fusion_bench"
"""The logger of the host's task pools, which tell the whole report of each evaluation."""


class Evaluation:
    """Scores of an ensemble that is combined in one way after another.

    Args:
        ensemble: Is combined otherwise for each score, and left as it was for the last one.
        taskpool: What evaluates it.
        objective: What of the task pool's report counts.
        progress: Is moved on by each score.

    Attributes:
        count: How many scores were asked for.
    """

    def __init__(self, ensemble: ParallelEnsemble, taskpool: Any, objective: Objective, progress: Any) -> None:
        self._ensemble = ensemble
        self._taskpool = taskpool
        self._objective = objective
        self._progress = progress
        self.count = 0

    def score(self, **combined: Any) -> float:
        """Return a number of which more is better.

        Args:
            **combined: What `ParallelEnsemble.recombine` is given.

        Raises:
            ValueError: If the report has no such metric or tasks.
        """
        self._ensemble.recombine(**combined)
        with _quiet() if self.count else nullcontext():  # the first one, which reads the data, shows its progress
            report: Mapping[str, Any] = self._taskpool.evaluate(self._ensemble)
        score = mean_over_ranks(self._objective.score(report))
        self.count += 1
        self._progress.set_postfix({self._objective.metric: f"{self._objective.value(report):.4g}"}, refresh=False)
        self._progress.update()
        return score


def mean_over_ranks(score: float) -> float:
    """Return the mean of all ranks' scores, each of which has seen its share of the data.

    So all ranks go the same way through a search, and choose the same.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return score
    scores = [0.0] * dist.get_world_size()
    dist.all_gather_object(scores, score)
    return sum(scores) / len(scores)


@contextmanager
def evaluations(ensemble: ParallelEnsemble, taskpool: Any, objective: Objective, at_most: int) -> Iterator[Evaluation]:
    """Show the progress of many evaluations, with an estimate of the time left.

    Args:
        ensemble: As in `Evaluation`.
        taskpool: As in `Evaluation`.
        objective: As in `Evaluation`.
        at_most: How many evaluations there will be at most.
    """
    quiet = getattr(rank_zero_only, "rank", 0) != 0
    with tqdm(total=at_most, unit="evaluation", desc="choosing", disable=quiet) as progress:
        yield Evaluation(ensemble, taskpool, objective, progress)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the host's progress bars and its reports of each evaluation off the screen."""
    log = logging.getLogger(HOST)
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
