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
    """A data loader that reads its batches the first time and returns the same ones from then on, if memory allows.

    Args:
        loader: What is read; its other attributes are this one's too.
        budget: Memory, shared with other loaders.
    """

    def __init__(self, loader: Iterable[Any], budget: Budget) -> None:
        self._loader = loader
        self._budget = budget
        self._kept: list[Any] | None = None
        self._keep = True  # until a batch does not fit

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        if self._kept is not None:
            yield from self._kept
            return
        read: list[Any] = []
        taken = 0
        try:
            for batch in self._loader:
                size = batch_bytes(batch) if self._keep else None
                self._keep = size is not None and self._budget.take(size)
                if self._keep:
                    read.append(batch)
                    taken += size or 0
                else:
                    read.clear()
                yield batch
            self._kept = read if self._keep else None
        finally:  # also if the reader stops early
            if self._kept is None:
                self._budget.take(-taken)

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
