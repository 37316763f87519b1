"""What a family is, and how its figures come about: by the host's command line, and by a loop that shares no code."""

from __future__ import annotations

import json
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any
from unittest.mock import patch

import torch
import typing_extensions
from torch import Tensor

CONFIG = Path(__file__).parent / "config"
METHODS = {
    "simple": ["method=ensemble/simple_ensemble"],
    "weighted": ["method=ensemble/weighted_ensemble", "method.weights=[0.5,0.3,0.2]"],
    "probability": ["method=ensemble/probability_ensemble"],
}
WEIGHTS = {"simple": [1.0, 1.0, 1.0], "weighted": [0.5, 0.3, 0.2], "probability": [1.0, 1.0, 1.0]}
DEVICE_MAPS = {"null": "null", "two lanes": "[cpu:0,cpu:1,cpu:0]"}
QUIET = ["fabric.accelerator=cpu", "print_config=false", "print_function_call=false"]

Figures = dict[str, float]
"""A report's figures by name, such as ``cola/accuracy``."""


@dataclass(frozen=True)
class Family:
    """One row of the conformance matrix.

    Args:
        slug: Name of its YAMLs and of its page.
        title: What its page is called.
        modelpool: The host's class.
        taskpool: The host's class.
        make: Saves three tiny models and a small data set in a folder.
        expected: The figures that a method has to get, from an explicit loop over the members in float64.
        refused: Methods that make no sense for it, with words of the error that says so.
        meaningless: Methods that make no sense for it, but can't know that; with the reason.
        report: Where its report is written.
        figures: What of the report is compared.
        needs: A package that is not always there.
        alike: How many methods have another one's figures.
        path: Where Python finds a package that stands for one that can't be installed.
        environment: Environment variables for a run in the folder.
    """

    slug: str
    title: str
    modelpool: str
    taskpool: str
    make: Callable[[Path], None]
    expected: Callable[[Path, str], Figures]
    refused: Mapping[str, str] = field(default_factory=dict)
    meaningless: Mapping[str, str] = field(default_factory=dict)
    report: str = "reports/report.json"
    figures: Callable[[Any], Figures] = lambda report: flat(report)
    needs: str | None = None
    alike: int = 0
    path: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pools(self) -> list[str]:
        """The part of the command line that names its pools."""
        return [f"modelpool={self.slug}", f"taskpool={self.slug}"]

    @property
    def evaluated(self) -> list[str]:
        """The methods that make sense for it."""
        return [method for method in METHODS if method not in self.refused and method not in self.meaningless]

    def prepare(self, folder: Path) -> None:
        """Save models, data and YAMLs where a user would have them."""
        for group in ("modelpool", "taskpool"):
            target = folder / "config" / group / f"{self.slug}.yaml"
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(CONFIG / group / f"{self.slug}.yaml", target)
        with torch.random.fork_rng(devices=[]):
            self.make(folder)


def command(family: Family, method: str, device_map: str) -> list[str]:
    """Return what a user writes after ``fusion_bench``."""
    places = [] if device_map == "null" else [f"method.device_map={DEVICE_MAPS[device_map]}"]
    return [*METHODS[method], *family.pools, *places]


def run_in_process(family: Family, arguments: Sequence[str], folder: Path) -> Any:
    """Run the host's command line in this process, which saves the seconds that a new one takes to import.

    Args:
        family: What is run.
        arguments: What follows the program's name.
        folder: Where it runs.

    Returns:
        The report that it has written.
    """
    import hydra
    from fusion_bench.scripts.cli import main
    from fusion_bench.utils.hydra_utils import get_default_config_path

    rmtree(folder / "reports", ignore_errors=True)
    line = ["fusion_bench", *arguments, *QUIET, f"report_save_path={Family.report}"]
    # the host's image classification pools import `typing.override`, which Python has from 3.12 on
    override = patch.object(typing, "override", typing_extensions.override, create=True)
    environment = patch.dict(os.environ, {**family.environment, "HYDRA_FULL_ERROR": "1"})
    path = patch.object(sys, "path", [*sys.path, *([family.path] if family.path else [])])
    with _working_in(folder), patch.object(sys, "argv", line), environment, override, path:
        # as `fusion_bench.scripts.cli` does at its import, for the folder that is current then
        hydra.main(config_path=get_default_config_path(), config_name="fabric_model_fusion", version_base=None)(main)()
    (written,) = folder.glob(family.report)
    return json.loads(written.read_text())


def flat(report: Any, prefix: str = "") -> Figures:
    """Return a report's numbers by their path, without the sizes of models."""
    if isinstance(report, Mapping):
        parts = [flat(value, f"{prefix}/{key}") for key, value in report.items() if key != "model_info"]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix.strip("/"): float(report)} if isinstance(report, (int, float)) else {}


def combine(method: str, outputs: Sequence[Tensor]) -> Tensor:
    """Combine the members' outputs, (classes last), by the method's formula written out."""
    weights = torch.tensor(WEIGHTS[method], dtype=torch.float64)
    stack = torch.stack(list(outputs)).double()
    if method == "probability":
        stack = stack.softmax(-1)
    mean = torch.einsum("m,m...->...", weights / weights.sum(), stack)
    return mean.log() if method == "probability" else mean


def scored(logits: Tensor, labels: Tensor) -> Figures:
    """Return accuracy and cross-entropy, as the host's classification pools report them."""
    right = (logits.argmax(-1) == labels).double().mean().item()
    return {"accuracy": right, "loss": torch.nn.functional.cross_entropy(logits, labels).item()}


def with_average(tasks: Mapping[str, Figures]) -> Figures:
    """Flatten figures by task and add their plain average."""
    names = next(iter(tasks.values()))
    average = {name: sum(task[name] for task in tasks.values()) / len(tasks) for name in names}
    return flat({**tasks, "average": average})


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
