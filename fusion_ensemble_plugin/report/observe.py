"""Class scores and labels of an evaluation, observed from outside: task pools report accuracies, not probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

LOADERS = "test_dataloaders"
"""Where FusionBench's task pools keep one data loader a task, from their set-up on."""

LABELS = ("labels", "label")


class Scores(NamedTuple):
    """What a model answered to all samples of a task.

    Attributes:
        logits: In float32, on the CPU, (samples, classes).
        labels: The true classes, (samples,).
    """

    logits: Tensor
    labels: Tensor


class Observer:
    """Notes, for each batch, what the outermost module answered: it is the last one to finish before the next batch.

    In a CLIP task pool that is the classifier around the ensemble, elsewhere the ensemble itself.

    Args:
        batch_done: Called for each batch that was drawn.
    """

    def __init__(self, batch_done: Callable[[], object] = lambda: None) -> None:
        self._batch_done = batch_done
        self._labels: Tensor | None = None
        self._logits: Tensor | None = None
        self._batches: dict[str, list[Scores]] = {}
        self._missing: set[str] = set()
        self._task = ""

    def drawn(self, task: str, batch: Any) -> None:
        """Take note of a batch that the task pool was given."""
        self.close()
        self._task, self._labels = task, _labels(batch)
        self._batch_done()

    def answered(self, module: nn.Module, given: Any, output: Any) -> None:
        """Take note of a module that has finished; a forward hook."""
        del given
        if self._labels is None or isinstance(module, Metric):
            return
        logits = _logits(output)
        if logits is not None and len(logits) == len(self._labels):
            self._logits = logits

    def close(self) -> None:
        """Keep what was answered to the latest batch."""
        if self._task and (self._labels is None or self._logits is None):
            self._missing.add(self._task)
        elif self._labels is not None and self._logits is not None:
            logits = self._logits.detach().float().cpu()
            self._batches.setdefault(self._task, []).append(Scores(logits, self._labels.detach().cpu()))
        self._task, self._labels, self._logits = "", None, None

    @property
    def scores(self) -> dict[str, Scores]:
        """What was answered, by task; tasks of which some answers are no class scores are left out."""
        whole = {task: batches for task, batches in self._batches.items() if task not in self._missing}
        return {task: Scores(*map(torch.cat, zip(*batches))) for task, batches in whole.items() if _fit(batches)}


@contextmanager
def observing(taskpool: Any, batch_done: Callable[[], object] = lambda: None) -> Iterator[Observer]:
    """Observe an evaluation by a task pool that is set up; afterwards it is as it was.

    Task pools that make their data loaders anew for each evaluation give no labels, and so no scores.
    """
    observer = Observer(batch_done)
    loaders = getattr(taskpool, LOADERS, None)
    if isinstance(loaders, Mapping):
        setattr(taskpool, LOADERS, {task: _Tap(loader, task, observer) for task, loader in loaders.items()})
    hook = nn.modules.module.register_module_forward_hook(observer.answered)
    try:
        yield observer
        observer.close()
    finally:
        hook.remove()
        if isinstance(loaders, Mapping):
            setattr(taskpool, LOADERS, loaders)


class _Tap:
    """A data loader whose batches an observer sees; its other attributes are the loader's."""

    def __init__(self, loader: Iterable[Any], task: str, observer: Observer) -> None:
        self._loader = loader
        self._task = task
        self._observer = observer

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self._observer.drawn(self._task, batch)
            yield batch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


def _labels(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in LABELS if name in batch), None)
    else:
        found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    whole = isinstance(found, Tensor) and found.dim() == 1 and not found.is_floating_point()
    return found if whole else None


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    usable = isinstance(found, Tensor) and found.dim() == 2 and found.is_floating_point() and found.shape[1] > 1
    return found if usable else None


def _fit(batches: list[Scores]) -> bool:
    """Say whether all batches have the same classes, and labels among them."""
    classes = {scores.logits.shape[1] for scores in batches}
    return len(classes) == 1 and all(s.labels.min() >= 0 and s.labels.max() < s.logits.shape[1] for s in batches)
