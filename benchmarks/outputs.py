"""Memory for outputs: how far resident memory grows in a forward, in outputs, as the number of members grows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import nn

from benchmarks.measuring import peak_bytes
from benchmarks.models import Filler, spread
from benchmarks.report import Figure, Result, Series, run
from fusion_ensemble_plugin import ParallelEnsemble

COUNTS = (2, 8, 16, 32)
ELEMENTS = 10 << 20  # 40 MiB: the C library gives tensors above 32 MiB back to the system at once
LIMIT, LANES = 3, 2


def peak_outputs(ensemble: nn.Module) -> float:
    """Return the growth of resident memory in a forward, in outputs of one member."""
    x = torch.ones(1)
    ensemble(x)  # starts workers
    return peak_bytes(lambda: ensemble(x)) / (4 * ELEMENTS)


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> Result:
    """Measure the ensemble in one place, on lanes, and FusionBench's."""
    kinds: dict[str, Callable[[list[nn.Module]], nn.Module]] = {
        "one place": ParallelEnsemble,
        f"{LANES} lanes": lambda members: ParallelEnsemble(members, spread(members, LANES)),
        "FusionBench": EnsembleModule,
    }
    lines: dict[str, dict[int, float]] = {name: {} for name in kinds}
    counts = COUNTS[:1] if arguments.quick else COUNTS
    for count in counts:
        for name, make in kinds.items():
            lines[name][count] = round(peak_outputs(make([Filler(ELEMENTS) for _ in range(count)])), 1)
    one, lanes, hosts = lines.values()
    figures = [Figure(f"{n} members in one place", one[n], "outputs", LIMIT, hosts[n]) for n in counts]
    figures += [Figure(f"{n} members on {LANES} lanes", lanes[n], "outputs", LANES * LIMIT) for n in counts]
    note = "The limit is 3 outputs for each worker. What is measured is resident memory, to a tenth of an output."
    return Result(
        "the most outputs in memory at a time",
        figures,
        note,
        series=Series("members", "outputs in memory at a time", lines),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("outputs", measure, 1, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
