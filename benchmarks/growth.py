"""Growth: time a member as their number goes from 1 to 64."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import in_turn, keep_freed_memory, powers_of_two, quietest
from benchmarks.models import images, tiny_vit
from benchmarks.report import Figure, Result, Series, run
from fusion_ensemble_plugin import ParallelEnsemble

MOST, BATCH, LIMIT = 64, 32, 0.05


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> Result:
    """Time ensembles of 1, 2, 4, ... members, and their bare members; equally many calls of members at each number."""
    torch.set_num_threads(1)  # threads that wait for each other make times jump where other processes run
    keep_freed_memory()
    most, batch = (8, 4) if arguments.quick else (MOST, BATCH)
    members = [tiny_vit(seed) for seed in range(most)]
    x = images(batch, 64)
    calls: dict[str, Callable[[], Any]] = {}
    for count in powers_of_two(most):
        calls[f"ensemble {count}"] = partial(ParallelEnsemble(members[:count]), x)
        calls[f"members {count}"] = partial(_call_all, members[:count], x)
    seconds = in_turn(
        calls, arguments.rounds, {name: most // int(name.split()[1]) for name in calls}, time.process_time
    )
    fastest = quietest(seconds)
    lines = {
        name: {count: 1000 * fastest[f"{name} {count}"] / count for count in powers_of_two(most)}
        for name in ("ensemble", "members")
    }
    figures = [
        Figure(f"a member's time among {count}, over its time alone in an ensemble", value / lines["ensemble"][1])
        for count, value in lines["ensemble"].items()
    ]
    worst = max(abs(figure.value - 1) for figure in figures)
    figures.insert(0, Figure("largest change of a member's time", worst, limit=LIMIT))
    title = f"tiny ViTs, batch {batch}: time a member, from 1 to {most} members"
    series = Series("members", "milliseconds a member", lines)
    note = "Processor time of one thread; each is the shortest of its rounds."
    return Result(title, figures, note, seconds, series)


def _call_all(members: list[nn.Module], x: Tensor) -> None:
    for member in members:
        member(x)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("growth", measure, 15, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
