"""Choosing weights or a temperature: what it costs over one evaluation, and what it brings on other pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from fusion_bench.constants import DEFAULT_CONFIG_PATH
from fusion_bench.utils.instantiate_utils import instantiate, set_print_function_call
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.report import Figure, Result, run

POOLS = "CLIPVisionModelTaskPool/clip-vit-tiny_TA4"
CHOOSING = ("greedy_ensemble", "learned_weights", "calibrated_ensemble")
FORWARDS_LIMIT = 1.05
RUNS: dict[str, list[str]] = {
    "simple_ensemble": [],
    "greedy_ensemble": [],
    "greedy_ensemble by loss": ["method.metric=loss"],
    "greedy_ensemble by loss, 5 bags": ["method.metric=loss", "method.bags=5"],
    "learned_weights": [],
    "learned_weights by loss": ["method.metric=loss"],
    "probability_ensemble": [],
    "calibrated_ensemble": [],
}
QUICK = ("simple_ensemble", "greedy_ensemble")


def composed(method: str, overrides: Sequence[str]) -> Any:
    """Return the config of the host's command line: one half of the test pictures chooses, the other one reports."""
    given = [
        f"method=ensemble/{method}",
        f"taskpool={POOLS}_holdout",
        "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4",
    ]
    if method in CHOOSING:
        given.append(f"taskpool@method.selection_taskpool={POOLS}_selection")
    with initialize_config_dir(str(DEFAULT_CONFIG_PATH), version_base=None):
        return compose("fabric_model_fusion", [*given, *overrides])


def taskpool(config: Any) -> Any:
    """Return a task pool, set up."""
    made = instantiate(config, _recursive_=False)
    made._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    made.setup()
    return made


def measured(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run one method, and report it on the half that it has not chosen by."""
    config = composed(name.split()[0], overrides)
    modelpool = instantiate(config.modelpool, _recursive_=False)
    method = instantiate(config.method, _recursive_=False)
    row: dict[str, Any] = {"method": name, "evaluations": 0}
    if method.config.get("selection_taskpool") is not None:
        method.selection_taskpool = taskpool(config.method.selection_taskpool)
        single = modelpool.load_model("mnist")
        row["one_pass"] = seconds(lambda: method.selection_taskpool.evaluate(single))
        row["batches"] = sum(map(len, method.selection_taskpool.test_dataloaders.values()))
    forwards: list[int] = []
    ensemble = None

    def choose() -> None:
        nonlocal ensemble
        with Counted(forwards):
            ensemble = method.run(modelpool)

    row["seconds"] = seconds(choose)
    row.update(taskpool(config.taskpool).evaluate(ensemble)["average"])
    if (chosen := getattr(method, "selection", None)) is not None:
        row.update(evaluations=chosen.evaluations, weights=dict(chosen.weights), options=dict(chosen.options))
        row["forwards"] = len(forwards) / len(chosen.weights)
    return row


class Counted:
    """Counts, in a list, the forwards of CLIP's vision towers."""

    def __init__(self, forwards: list[int]) -> None:
        self._forwards = forwards

    def __enter__(self) -> None:
        """Start to count."""
        self._handle = nn.modules.module.register_module_forward_hook(self._count)

    def __exit__(self, *error: object) -> None:
        """Count no more."""
        self._handle.remove()

    def _count(self, module: nn.Module, given: Any, output: Any) -> None:
        if type(module).__name__ == "CLIPVisionModel":
            self._forwards.append(1)


def seconds(call: Any) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print what each method chose and what it brings."""
    table = Table("method", "accuracy", "loss", "evaluations", "passes in time", "weights")
    for row in rows:
        passes = f"{row['seconds'] / row['one_pass']:.2f}" if "one_pass" in row else ""
        weights = " ".join(f"{weight:.2f}" for weight in row.get("weights", {}).values())
        table.add_row(
            row["method"], f"{row['accuracy']:.4f}", f"{row['loss']:.3f}", str(row["evaluations"]), passes, weights
        )
    Console(width=120).print(table)


def measure(arguments: argparse.Namespace) -> Result:
    """Choose by half of the offline benchmark's test pictures, and report on the other half."""
    torch.set_num_threads(1)
    with set_print_function_call(False):
        rows = [measured(name, RUNS[name]) for name in (QUICK if arguments.quick else RUNS)]
    show(rows)
    figures = []
    for row in (row for row in rows if "one_pass" in row):
        count = f"{row['method']}, {row['evaluations']} evaluations"
        figures.append(Figure(f"{count}: time over one member's evaluation", row["seconds"] / row["one_pass"]))
        figures.append(
            Figure(f"{count}: forwards a member and batch", row["forwards"] / row["batches"], "", FORWARDS_LIMIT)
        )
    return Result("methods that choose, on the offline benchmark", figures, samples={"rows": rows})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and keep the figures."""
    return run("selection", measure, 1, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
