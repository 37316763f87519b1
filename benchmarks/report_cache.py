"""A report's evaluations: ten combinations of members whose outputs are kept, over one combination without keeping."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from fusion_bench.utils.instantiate_utils import instantiate, set_print_function_call

from benchmarks.report import Figure, Result, run
from benchmarks.selection import Counted, composed, seconds, taskpool
from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.cache import OutputCache
from fusion_ensemble_plugin.report.progress import Finished
from fusion_ensemble_plugin.report.taskpool import ReportingTaskPool, quiet

GIB = 2**30
TIME_LIMIT = 1.25
FORWARDS_LIMIT = 1.05
COSTLY = "ten, not kept"
"""For comparison, and measured in the first round only."""


def combinations(ensemble: ParallelEnsemble) -> dict[str, ParallelEnsemble]:
    """Return ten combinations of four members."""
    every = range(len(ensemble.names))
    alone = {f"member {i}": ensemble.subset([i]) for i in every}
    without = {f"without {i}": ensemble.subset([j for j in every if j != i]) for i in every}
    weighted = ensemble.subset(list(every), weights=[1.0, 2.0, 3.0, 4.0])
    return {"ensemble": ensemble, "weighted": weighted, **alone, **without}


def evaluated(members: Sequence[torch.nn.Module], pool: Any, kept: bool, several: bool) -> dict[str, float]:
    """Evaluate one or ten combinations, and return the time and the number of towers' forwards."""
    names = [str(i) for i in range(len(members))]
    keys = ["pooler_output"]
    ensemble = ParallelEnsemble(members, names=names, output_keys=keys, cache=OutputCache(4 * GIB) if kept else None)
    models = combinations(ensemble) if several else {"ensemble": ensemble}
    judge = ReportingTaskPool(pool, models, Finished(None), 2 * GIB, lambda: None) if kept else pool
    forwards: list[int] = []
    with Counted(forwards), quiet():
        time = seconds(lambda: [judge.evaluate(model) for model in models.values()])
    return {"seconds": time, "forwards": float(len(forwards))}


def measure(arguments: argparse.Namespace) -> Result:
    """Evaluate in the host's CLIP task pool, on the offline benchmark."""
    torch.set_num_threads(1)
    cases = {"one, not kept": (False, False), "ten, kept": (True, True), COSTLY: (False, True)}
    rounds: list[dict[str, dict[str, float]]] = []
    with set_print_function_call(False):
        config = composed("simple_ensemble", [])
        modelpool = instantiate(config.modelpool, _recursive_=False)
        members = [modelpool.load_model(name).eval() for name in modelpool.model_names]
        pool = taskpool(config.taskpool)
        evaluated(members, pool, False, False)  # warms up
        for number in range(arguments.rounds):
            now = [name for name in cases if name != COSTLY or number == 0]
            rounds.append({name: evaluated(members, pool, *cases[name]) for name in now})
    figures = []
    for name in ("ten, kept", COSTLY):
        limits = {"seconds": TIME_LIMIT, "forwards": FORWARDS_LIMIT} if name == "ten, kept" else {}
        for what, words in (("seconds", "time"), ("forwards", "members' forwards")):
            ratio = median(each[name][what] / each["one, not kept"][what] for each in rounds if name in each)
            figures.append(Figure(f"{name}: {words} over one combination's", ratio, "", limits.get(what)))
    return Result("ten combinations evaluated, on the offline benchmark", figures, samples={"rounds": rounds})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("report_cache", measure, 5, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
