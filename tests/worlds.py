"""Small worlds of ranks for tests: processes on this machine, joined by gloo, each of which saves what it found."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

FEATURES, CLASSES = 6, 4


class Member(nn.Module):
    """A member with outputs of many kinds, computed row by row."""

    def __init__(self, index: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(index)
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES, generator=generator))

    def forward(self, x: Tensor, options: Any = None) -> dict[str, Any]:
        logits = x.to(self.weight.dtype) @ self.weight.T
        return {"logits": logits, "more": (logits.tanh(), None), "rows": x.long()[:, 0], "kind": "linear"}


def members(count: int) -> list[nn.Module]:
    return [Member(index) for index in range(count)]


def rows(rank: int, step: int, count: int) -> Tensor:
    """Return what a rank's loader gives at a step, (count, features)."""
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1000 * rank + step))


def run_world(job: Callable[..., Any], world: int, folder: Path, *args: Any, ranks: int | None = None) -> list[Any]:
    """Run ``job(rank, *args)`` in the processes of a world.

    Args:
        job: A function of this file's kind: one that another process can import.
        world: The number of ranks.
        folder: For their files.
        args: The job's other arguments.
        ranks: How many of them to start; the others never come.

    Returns:
        What each one returned; an exception if it raised one.
    """
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(job, rank, world, folder, args), daemon=True)
        for rank in range(world if ranks is None else ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank hangs"
    return [torch.load(_result(folder, rank), weights_only=False) for rank in range(len(processes))]


def _rank(job: Callable[..., Any], rank: int, world: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    begin(rank, world, folder / "store")
    try:
        result: Any = job(rank, *args)
    except Exception as error:
        result = error
    torch.save(result, _result(folder, rank))
    os._exit(0)  # a process group whose rank is gone is not to be taken down in order


def begin(rank: int, world: int, store: Path) -> None:
    """Join a world."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.pt"
