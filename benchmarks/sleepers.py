"""Members that sleep: 8 of them on 8 lanes, over one of them alone. Nothing but the ensemble itself can add time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule

from benchmarks.measuring import in_turn, ratio
from benchmarks.models import Sleeper, spread
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import ParallelEnsemble

MEMBERS, LIMIT = 8, 1.15


def measure(arguments: argparse.Namespace) -> Result:
    """Time one member, the ensemble on lanes, and FusionBench's with a device map."""
    members = [Sleeper(0.1) for _ in range(MEMBERS)]
    x = torch.ones(1)
    ours = ParallelEnsemble(members, spread(members, MEMBERS))
    host = EnsembleModule(members, dict.fromkeys(range(MEMBERS), "cpu"))
    calls = {"one member": lambda: members[0](x), "lanes": lambda: ours(x), "host": lambda: host(x)}
    seconds = in_turn(calls, arguments.rounds)
    ours.close()
    found, hosts = (ratio(seconds, name, "one member") for name in ("lanes", "host"))
    figure = Figure(f"{MEMBERS} members on {MEMBERS} lanes, over one member", found, limit=LIMIT, host=hosts)
    return Result(f"{MEMBERS} members that sleep 0.1 s each", [figure], samples=seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("sleepers", measure, 11, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
