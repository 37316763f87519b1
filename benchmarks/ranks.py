"""Members over two ranks: time over processes that do not talk, resident memory, and bytes on the wire."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fusion_bench.modelpool.base_pool import BaseModelPool
from omegaconf import OmegaConf
from torch import nn

from benchmarks.measuring import keep_freed_memory
from benchmarks.models import features, images, mlp, small_vit
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.distributed.cost import Plan

RANKS = 2
TIME_LIMIT, MEMORY_LIMIT, WIRE_LIMIT = 1.15, 0.6, 0.05
TIMED, HELD = 8, 16
"""Members whose forwards are timed, and members whose memory is counted."""

Found = dict[str, Any]


class Pool(BaseModelPool):
    """Makes a member when it is asked for one."""

    def __init__(self, make: Callable[[int], nn.Module], count: int) -> None:
        super().__init__(OmegaConf.create({str(number): {"_target_": "torch.nn.Identity"} for number in range(count)}))
        self._make = make

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        """Make the member of this number."""
        return self._make(int(model_name_or_config))


def on_ranks(job: Callable[..., Found], ranks: int, *arguments: Any) -> list[Found]:
    """Run ``job(*arguments)`` on every rank of a world, one thread each; return what each rank found."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        workers = [
            context.Process(target=_rank, args=(job, rank, ranks, folder, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(job: Callable[..., Found], rank: int, ranks: int, folder: str, arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    with torch.inference_mode():
        found = job(*arguments)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def timed(batch: int, rounds: int) -> Found:
    """Time forwards on all ranks at once, and the same members on as many rows with no other rank."""
    ensemble = SimpleEnsembleAlgorithm(member_parallel=True, output_keys=["pooler_output"]).run(Pool(small_vit, TIMED))
    ranks = dist.get_world_size()
    own, joined = images(batch, 64), images(batch * ranks, 64)
    alone = [small_vit(number) for number in range(TIMED // ranks)]
    calls: dict[str, Callable[[], Any]] = {
        "ensemble": lambda: ensemble(own),
        "alone": lambda: [member(joined) for member in alone],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    wire = []
    for number in range(rounds + 1):
        for name in sorted(calls, reverse=bool(number % 2)):
            before, start = _sent(), _start()
            calls[name]()
            took = time.perf_counter() - start
            dist.barrier()
            if number > 0:  # the first round warms up, and tells the ranks what trees look like
                seconds[name].append(took)
                wire += [_sent() - before] if name == "ensemble" else []
    output = own.new_empty(batch, 192)
    return {"seconds": seconds, "wire": min(wire), "input": own.nbytes, "output": output.nbytes}


def _start() -> float:
    dist.barrier()
    return time.perf_counter()


def _sent() -> int:
    dist.barrier()
    return int(psutil.net_io_counters(pernic=True)["lo"].bytes_sent)


def resident(batch: int) -> Found:
    """Return by how much holding and running the members has grown this process."""
    process, spread = psutil.Process(), dist.get_world_size() > 1
    warm_up = SimpleEnsembleAlgorithm(member_parallel=spread).run(Pool(lambda _: nn.Linear(1024, 1), 2))
    warm_up(features(batch, 1024))
    before = process.memory_info().rss
    ensemble = SimpleEnsembleAlgorithm(member_parallel=spread).run(Pool(mlp, HELD))
    ensemble(features(batch, 1024))
    return {"grown": process.memory_info().rss - before}


def measure(arguments: argparse.Namespace) -> Result:
    """Time 8 small ViTs, and count the memory of 16 MLPs, on two ranks."""
    batch = 2 if arguments.quick else 16
    found = on_ranks(timed, RANKS, batch, arguments.rounds)
    slowest = {
        name: [max(times) for times in zip(*(rank["seconds"][name] for rank in found))] for name in found[0]["seconds"]
    }
    plan = Plan(TIMED, RANKS, RANKS, 0, found[0]["input"], found[0]["output"])
    one, *two = [max(rank["grown"] for rank in on_ranks(resident, ranks, batch)) for ranks in (1, RANKS)]
    figures = [
        Figure(
            "8 small ViTs: 2 ranks over 2 processes that do not talk",
            median(ours / theirs for ours, theirs in zip(slowest["ensemble"], slowest["alone"])),
            limit=TIME_LIMIT,
        ),
        Figure("16 MLPs: memory of a rank over that of one process with all", two[0] / one, limit=MEMORY_LIMIT),
        Figure("bytes on the wire, off the plan's", abs(found[0]["wire"] / plan.wire - 1), limit=WIRE_LIMIT),
        Figure("bytes on the wire in a forward", found[0]["wire"] / 2**10, unit="KiB"),
    ]
    note = "Each rank has one thread and its own batch; a time is that of the slower rank."
    return Result(f"members over {RANKS} ranks", figures, note, slowest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("ranks", measure, 15, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
