"""A pool larger than memory: 16 members, room for 3, the others on the disk; memory, and time over all in memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.instantiate_utils import set_print_function_call
from torch import Tensor

from benchmarks.measuring import in_turn, medians, peak_since, ratio, reset_peak
from benchmarks.models import features, mlp
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.sizes import module_bytes

MEMBERS, ROOM, LIMIT = 16, 3, 4
WIDTH, HIDDEN, BATCH = 2048, 4096, 64


def pool() -> BaseModelPool:
    """Return a model pool that makes each member when it is loaded: 64 MiB of weights."""
    source = {"_target_": "benchmarks.models.mlp", "width": WIDTH, "hidden": HIDDEN}
    members: dict[str, Any] = {f"mlp_{seed}": {**source, "seed": seed} for seed in range(MEMBERS)}
    return BaseModelPool(members)


def peaks(options: dict[str, Any], x: Tensor, member: int) -> tuple[ParallelEnsemble, float, float]:
    """Load an ensemble and run it; returns it and the growth of resident memory in members, loading and running."""
    before = reset_peak()
    with set_print_function_call(False):
        ensemble = SimpleEnsembleAlgorithm(device_map="cpu", **options).run(pool())
    loading = peak_since(before)
    reset_peak()
    with torch.inference_mode():
        for _ in range(3):
            ensemble(x)
    return ensemble, loading / member, peak_since(before) / member


def measure(arguments: argparse.Namespace) -> Result:
    """Measure memory with members offloaded, then load all, compare outputs bit by bit, and time both."""
    x = features(BATCH, WIDTH)
    one = mlp(0, WIDTH, HIDDEN)
    member = module_bytes(one)
    with torch.inference_mode():
        one(x)  # what torch's libraries need for themselves is there from here on
    del one
    small, loading, running = peaks({"max_memory": {"cpu": ROOM * member}, "offload": "disk"}, x, member)
    large, all_loading, all_running = peaks({}, x, member)
    with torch.inference_mode():
        same = torch.equal(small(x), large(x))
        seconds = in_turn({"offloaded": partial(small, x), "in memory": partial(large, x)}, arguments.rounds)
    figures = [
        Figure("resident while running", running, "members", LIMIT),
        Figure("resident while loading", loading, "members", LIMIT),
        Figure("resident while running, all in memory", all_running, "members"),
        Figure("resident while loading, all in memory", all_loading, "members"),
        Figure("outputs that are not bit-equal", float(not same), limit=0),
        Figure("time over all in memory", ratio(seconds, "offloaded", "in memory")),
        Figure("time a member on the disk", 1000 * medians(seconds)["offloaded"] / MEMBERS, "ms"),
    ]
    title = f"{MEMBERS} members of {member >> 20} MiB, room for {ROOM}, the others on the disk; batch {BATCH}"
    return Result(title, figures, samples=seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("offload", measure, 9, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
