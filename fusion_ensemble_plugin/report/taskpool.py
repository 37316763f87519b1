"""The configured task pool, through which a report sees what each model is worth."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn
from tqdm.auto import tqdm

from fusion_ensemble_plugin.report.compare import numbers, task_names
from fusion_ensemble_plugin.report.observe import LOADERS, Observer, Scores, observing
from fusion_ensemble_plugin.report.progress import Evaluated, Finished
from fusion_ensemble_plugin.report.prompts import prompts_kept
from fusion_ensemble_plugin.selection.batches import Budget, batches_kept

log = logging.getLogger(__name__)

HOST = "fusion_bench"


class ReportingTaskPool:
    """Evaluates models as the task pool does, and keeps what a report needs of each.

    All else is the task pool's own: attributes, and the evaluation of models that are not of the report.

    Args:
        taskpool: What evaluates.
        models: The report's models that are not evaluated yet, by name.
        finished: What is known already; is added to.
        batch_bytes: Memory in which the task pool's batches are kept, which are then read once.
        complete: Called when the last of the models was evaluated.
    """

    def __init__(
        self,
        taskpool: Any,
        models: Mapping[str, nn.Module],
        finished: Finished,
        batch_bytes: int,
        complete: Callable[[], object],
    ) -> None:
        self._taskpool = taskpool
        self._names = {id(model): name for name, model in models.items()}
        self._models = dict(models)
        self._finished = finished
        self._complete = complete
        self._batch_bytes = batch_bytes
        self._kept = ExitStack()
        self._progress: Any = None

    def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a model and return the task pool's report."""
        name = self._names.get(id(model))
        if name is None:
            return self._taskpool.evaluate(model, *args, **kwargs)
        self._begin()
        try:
            self._progress.set_description(f"evaluating {name}")
            with quiet(), observing(self._taskpool, self._progress.update) as observer:
                report = self._taskpool.evaluate(model, *args, **kwargs)
        except BaseException:
            self._end()
            raise
        self._finished.add(name, Evaluated(report, trusted(name, report, observer)))
        self._names.pop(id(model))
        self._models.pop(name)
        if not self._names:
            self._end()
            self._complete()
        return report

    def _begin(self) -> None:
        if self._progress is not None:
            return
        self._kept = ExitStack()
        self._kept.enter_context(batches_kept(self._taskpool, Budget(self._batch_bytes)))
        self._kept.enter_context(prompts_kept(self._taskpool))
        loaders = getattr(self._taskpool, LOADERS, None)
        each = sum(map(len, loaders.values())) if isinstance(loaders, Mapping) else None
        total = each and each * len(self._names)
        off = getattr(rank_zero_only, "rank", 0) != 0
        self._progress = tqdm(total=total, unit="batch", disable=off, file=sys.stderr, smoothing=0.05)

    def _end(self) -> None:
        if self._progress is not None:
            self._kept.close()
            self._progress.close()
            self._progress = None

    def __getattr__(self, name: str) -> Any:
        if name == "_taskpool":
            raise AttributeError(name)
        return getattr(self._taskpool, name)


def trusted(name: str, report: Any, observer: Observer) -> dict[str, Scores]:
    """Return the observed scores of those tasks whose accuracy they give as the task pool reports it."""
    kept = {}
    for task, scores in observer.scores.items():
        reported = numbers(report.get(task, {})).get("accuracy")
        observed = (scores.logits.argmax(dim=-1) == scores.labels).double().mean().item()
        if reported is not None and abs(reported - observed) > 1e-4:
            log.warning(
                "%s, %s: scores were observed whose accuracy (%.4f) is not the reported one", name, task, observed
            )
            continue
        kept[task] = scores
    known = task_names(report)
    return {task: scores for task, scores in kept.items() if task in known}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the host's progress bars and its reports of each evaluation off the screen."""
    host = logging.getLogger(HOST)
    level = host.level
    host.setLevel(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        host.setLevel(level)
