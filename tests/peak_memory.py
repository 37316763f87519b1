"""Run as a process of its own: prints by how many members its memory grew at most while it did one thing.

``python peak_memory.py <what> <folder>``: one of the functions below, and where to write the members' checkpoint.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from fusion_bench.modelpool import BaseModelPool
from torch import nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

WIDTH, LAYERS = 1024, 12
MEMBER = 4 * LAYERS * (WIDTH * WIDTH + WIDTH)  # bytes, 48 MiB
MEMBERS = 16
X = torch.zeros(2, WIDTH)


def member() -> nn.Module:
    """Return a member that owns its memory."""
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]).requires_grad_(False)


def pool(folder: Path, count: int) -> BaseModelPool:
    """Return a pool of checkpoints that are read, not mapped."""
    torch.save(member(), folder / "member.pt")
    source = {"_target_": "torch.load", "f": str(folder / "member.pt"), "weights_only": False}
    return BaseModelPool({f"member{i}": source for i in range(count)})


def peak() -> int:
    """Return the most bytes that this process ever had in memory."""
    if sys.platform == "linux":  # where ru_maxrss starts with what the process that forked this one had
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one_by_one(folder: Path) -> Iterator[None]:
    """Load a pool to a device that is not the CPU, as the method does."""
    models = pool(folder, 6)
    yield
    SimpleEnsembleAlgorithm(device_map="meta").run(models)


def cast(folder: Path) -> Iterator[None]:
    """Load a pool in half precision."""
    models = pool(folder, 6)
    yield
    SimpleEnsembleAlgorithm(device_map="meta", dtype="bfloat16").run(models)


def all_at_once(folder: Path) -> Iterator[None]:
    """Load a pool as the host's own ensemble does: all members, then the move."""
    models = pool(folder, 6)
    yield
    ParallelEnsemble([models.load_model(name) for name in models.model_names], "meta")


def offloaded(folder: Path) -> Iterator[None]:
    """Load and run a pool with room for three of its members; the others rest on the disk."""
    models = pool(folder, MEMBERS)
    method = SimpleEnsembleAlgorithm(device_map="cpu", max_memory={"cpu": 3 * MEMBER}, offload="disk")
    yield
    ensemble = method.run(models)
    with torch.no_grad():
        for _ in range(3):
            ensemble(X)


def main(what: str, folder: str) -> None:
    """Do it once on one small member, to have everything imported, then measure."""
    warm_up = ParallelEnsemble([torch.load(_tiny(Path(folder)), weights_only=False)], "cpu")
    warm_up(torch.zeros(1, 1))
    task = {task.__name__: task for task in (one_by_one, cast, all_at_once, offloaded)}[what](Path(folder))
    next(task)
    before = psutil.Process().memory_info().rss
    next(task, None)
    print(f"{(peak() - before) / MEMBER:.2f}")


def _tiny(folder: Path) -> Path:
    torch.save(nn.Linear(1, 1), folder / "tiny.pt")
    return folder / "tiny.pt"


if __name__ == "__main__":
    main(*sys.argv[1:])
