"""CPU lanes over their limit: the same members in independent processes with no ensemble, and over FusionBench's."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor

from benchmarks.measuring import Seconds, in_turn, keep_freed_memory, ratio
from benchmarks.models import features, images, mlp, small_vit, spread
from benchmarks.processes import Make, Processes
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import ParallelEnsemble

OVER_LIMIT, OVER_HOST = 1.10, 1.05


def timed(make: Make, count: int, x: Tensor, lanes: int, rounds: int) -> Seconds:
    """Time lanes, independent processes, FusionBench's ensemble and the bare members, which use all cores each."""
    members = [make(seed) for seed in range(count)]
    ours = ParallelEnsemble(members, spread(members, lanes))
    host = EnsembleModule(members)
    shares = [range(lane, count, lanes) for lane in range(lanes)]
    with Processes(make, shares, x) as processes:
        calls: dict[str, Callable[[], Any]] = {
            "lanes": lambda: ours(x),
            "processes": processes,
            "host": lambda: host(x),
            "members": lambda: [member(x) for member in members],
        }
        seconds = in_turn(calls, rounds)
    ours.close()
    return seconds


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> Result:
    """Time 4 MLPs and 8 small ViTs."""
    keep_freed_memory()  # as the processes do
    lanes = max(2, torch.get_num_threads())
    batch = 16 if arguments.quick else 256
    pools: dict[str, tuple[Make, int, Tensor]] = {
        "4 MLPs": (mlp, 4, features(batch, 1024)),
        "8 small ViTs": (small_vit, 8, images(max(2, batch // 8), 64)),
    }
    figures, samples = [], {}
    for name, (make, count, x) in pools.items():
        seconds = samples[name] = timed(make, count, x, lanes, arguments.rounds)
        limit = ratio(seconds, "processes", "members")
        figures += [
            Figure(f"{name}: processes over bare members (what the machine can do)", limit),
            Figure(f"{name}: lanes over processes", ratio(seconds, "lanes", "processes"), limit=OVER_LIMIT),
            Figure(f"{name}: lanes over FusionBench", ratio(seconds, "lanes", "host"), limit=OVER_HOST),
        ]
    note = "A bare member uses all cores. Where these share arithmetic units, even processes are no faster."
    return Result(f"{lanes} lanes, over {lanes} independent processes", figures, note, samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("lanes", measure, 15, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
