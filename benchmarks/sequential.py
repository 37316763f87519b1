"""What the ensemble costs when members run one after another: its time over the bare members'."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn

from benchmarks.measuring import Seconds, in_turn, keep_freed_memory, medians, ratio
from benchmarks.models import features, images, mlp, small_vit, vision_tower
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import ParallelEnsemble

MEMBERS, BATCH, LIMIT = 8, 8, 1.02
NOTE = "Processor time of one thread."


def timed(members: Sequence[nn.Module], x: Tensor, rounds: int, repeats: int = 1) -> Seconds:
    """Time bare members, the ensemble without a device map, and FusionBench's."""
    calls: dict[str, Callable[[], Any]] = {
        "members": lambda: [member(x) for member in members],
        "ensemble": partial(ParallelEnsemble(members), x),
        "host": partial(EnsembleModule(list(members)), x),
    }
    return in_turn(calls, rounds, dict.fromkeys(calls, repeats), time.process_time)


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> Result:
    """Time towers in the shape of CLIP ViT-B/32, and members so small that only the ensemble counts."""
    torch.set_num_threads(1)  # threads that wait for each other make times jump where other processes run
    keep_freed_memory()
    make, size = (small_vit, 64) if arguments.quick else (vision_tower, 224)
    towers = timed([make(seed) for seed in range(MEMBERS)], images(BATCH, size), arguments.rounds)
    tiny = timed([mlp(seed, 8, 8) for seed in range(MEMBERS)], features(1, 8), 5 * arguments.rounds, 20)
    kind = "small ViT" if arguments.quick else "CLIP ViT-B/32"
    ours, hosts = (ratio(towers, name, "members") for name in ("ensemble", "host"))
    middle = medians(tiny)
    added, host_added = (1e6 * (middle[name] - middle["members"]) / MEMBERS for name in ("ensemble", "host"))
    figures = [
        Figure(f"{MEMBERS} towers, batch {BATCH}, over the bare members", ours, limit=LIMIT, host=hosts),
        Figure("time added to each call of a member", added, "µs", host=host_added),
    ]
    samples = {"towers": towers, "tiny": tiny}
    return Result(f"{MEMBERS} towers in the shape of {kind}, one after another", figures, NOTE, samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("sequential", measure, 11, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
