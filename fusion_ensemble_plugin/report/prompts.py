"""CLIP's text side, read once a task: all models of a report are judged by the same frozen text embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

SEAM = "on_task_evaluation_begin"
"""What FusionBench's CLIP task pools call, with the classifier, before it is told a task's class names."""


@contextmanager
def prompts_kept(taskpool: Any) -> Iterator[None]:
    """Let a task pool's classifiers keep their text embeddings; others than CLIP's are left as they are.

    Args:
        taskpool: Has its own way again afterwards.
    """
    begin = getattr(taskpool, SEAM, None)
    if begin is None:
        yield
        return
    kept: dict[tuple[Any, ...], Tensor] = {}

    def begin_with_kept(classifier: Any, task: str) -> Any:
        result = begin(classifier, task)
        if hasattr(classifier, "set_classification_task") and hasattr(classifier, "zeroshot_weights"):
            classifier.set_classification_task = _Prompts(classifier, task, kept)
        return result

    setattr(taskpool, SEAM, begin_with_kept)
    try:
        yield
    finally:
        delattr(taskpool, SEAM)


class _Prompts:
    """Takes the place of a classifier's ``set_classification_task``."""

    def __init__(self, classifier: Any, task: str, kept: dict[tuple[Any, ...], Tensor]) -> None:
        self._classifier = classifier
        self._embed = classifier.set_classification_task
        self._task = task
        self._kept = kept

    def __call__(self, classnames: Sequence[str], templates: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        classifier = self._classifier
        key = (self._task, tuple(classnames), tuple(map(id, templates)), id(classifier.clip_model.text_model))
        if args or kwargs or key not in self._kept:
            self._embed(classnames, templates, *args, **kwargs)
            self._kept[key] = classifier.zeroshot_weights
        else:
            classifier.classnames, classifier.templates = classnames, templates
            classifier.zeroshot_weights = self._kept[key]
