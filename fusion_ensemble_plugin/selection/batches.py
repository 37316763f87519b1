"""Batches that are read once: decoding and scaling pictures often costs more than a small model's forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import Tensor

from fusion_ensemble_plugin.tree import flatten

LOADERS = "test_dataloaders"
"""Where FusionBench's task pools keep one data loader a task, from their set-up on."""


class Budget:
    """Bytes of memory that may still be taken, from any thread.

    Args:
        left: How many.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Take some, if there are as many; what is negative is given back."""
        with self._lock:
            fits = size <= self.left
            self.left -= size if fits else 0
            return fits


class KeptBatches:
    """A data loader that reads each batch once and returns the same ones from then on, if memory allows.

    What a reader that stops early has not asked for is read when it is asked for.

    Args:
        loader: What is read; its other attributes are this one's too.
        budget: Memory, shared with other loaders.
    """

    def __init__(self, loader: Iterable[Any], budget: Budget) -> None:
        self._loader = loader
        self._budget = budget
        self._kept: list[Any] = []
        self._unread: Iterator[Any] | None = None  # where reading goes on
        self._keep = True  # until a batch does not fit

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        if not self._keep:
            yield from self._loader
            return
        yield from self._kept
        self._unread = iter(self._loader) if self._unread is None else self._unread
        for batch in self._unread:
            if self._keep and not self._take(batch):
                self._let_go()
            if self._keep:
                self._kept.append(batch)
            yield batch

    def _take(self, batch: Any) -> bool:
        size = batch_bytes(batch)
        return size is not None and self._budget.take(size)

    def _let_go(self) -> None:
        self._keep = False
        self._budget.take(-sum(batch_bytes(batch) or 0 for batch in self._kept))
        self._kept.clear()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


@contextmanager
def batches_kept(taskpool: Any, budget: Budget) -> Iterator[None]:
    """Let a task pool read its batches once; on leaving, it has its own data loaders again.

    Task pools that make their data loaders anew for each evaluation read on as they do.

    Args:
        taskpool: Is set up, if it can be and is not.
        budget: Memory for all its batches.
    """
    if getattr(taskpool, "_is_setup", True) is False:
        taskpool.setup()
        taskpool._is_setup = True
    loaders = getattr(taskpool, LOADERS, None)
    if not isinstance(loaders, Mapping):
        yield
        return
    setattr(taskpool, LOADERS, {task: KeptBatches(loader, budget) for task, loader in loaders.items()})
    try:
        yield
    finally:
        setattr(taskpool, LOADERS, loaders)


def batch_bytes(batch: Any) -> int | None:
    """Return the memory of a batch's tensors; None if it holds anything but tensors, numbers and strings.

    Examples:
        >>> import torch
        >>> batch_bytes((torch.zeros(2, 3), {"label": [1, 2]})), batch_bytes(object())
        (24, None)
    """
    leaves = flatten(batch)[0]
    if any(not isinstance(leaf, (Tensor, int, float, str, type(None))) for leaf in leaves):
        return None
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
