"""The example of a third-party plugin: installed as a user does it, without a network, and run by the command line."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli
from torch import Tensor, nn

from fusion_ensemble_plugin import ProbabilityEnsemble
from fusion_ensemble_plugin.plugins import registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

EXAMPLE = Path(__file__).parent.parent / "examples/entropy_weighted_plugin"
BENCHMARK = ["modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4", "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4"]
LANES = ["cpu:0", "cpu:1", "cpu:0"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder of its own; a build leaves files beside the source, so build a copy."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-qq", *options, "--target", folder / "site", folder / "source"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture
def plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the plugin's module with the reducer, in this process."""
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    yield import_module("fusion_ensemble_entropy.reducer")
    registry.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fusion_ensemble_entropy")]:
        del sys.modules[name]


def members(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    """Return three classifiers of four classes."""
    return [nn.Linear(3, 4, dtype=dtype) for _ in LANES]


def oracle(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the entropy-weighted mean of the members' probabilities, ``(members, batch, classes)``."""
    p = scores.softmax(-1)
    certainty = weights.view(-1, 1) * torch.exp(torch.special.entr(p).neg().sum(-1))
    return ((certainty.unsqueeze(-1) * p).sum(0) / certainty.sum(0).unsqueeze(-1)).log()


def test_the_installed_package_is_the_files_that_its_readme_lists(site: Path) -> None:
    listed = re.findall(r"^\| `([^`]+)` \|", (EXAMPLE / "README.md").read_text(), flags=re.MULTILINE)
    assert len(listed) == 5
    assert [name for name in listed if not (EXAMPLE / name).is_file()] == []
    assert [name for name in listed if name != "pyproject.toml" and not (site / name).is_file()] == []
    assert not (site / "hydra_plugins/__init__.py").exists()


def test_the_command_line_runs_its_method_by_its_own_yaml(site: Path, run_cli: RunCli, tmp_path: Path) -> None:
    options = ["method.device_map=[cpu:0,cpu:1,cpu:0,cpu:1]", "method.reducer.temperature=2", "fast_dev_run=true"]
    done = run_cli(
        "method=ensemble/entropy_weighted", *BENCHMARK, *options, cwd=tmp_path, env={"PYTHONPATH": str(site)}
    )
    assert "could not" not in done.stderr
    (report,) = (json.loads(path.read_text()) for path in tmp_path.rglob("program_report.json"))
    assert 0 < report["average"]["accuracy"] <= 1
    (log,) = tmp_path.rglob("config.yaml")
    assert "name: entropy_weighted" in log.read_text()


def test_plugins_lists_it_with_its_package(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusion_ensemble_plugin", "plugins"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    rows = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    package = "fusion-ensemble-entropy 0.1.0"
    target = "fusion_ensemble_plugin.ProbabilityEnsembleAlgorithm"
    assert ["ensemble/entropy_weighted", target, package] in rows
    assert ["entropy_weighted", "fusion_ensemble_entropy.reducer.EntropyWeightedReducer", package] in rows
    assert ["entropy", "loaded", package] in rows
    assert done.returncode == 0


def test_its_examples_are_true(plugin: Any) -> None:
    assert doctest.testmod(plugin) == (0, 4)


@pytest.mark.parametrize("device_map", [None, LANES])
@pytest.mark.parametrize("executor", ["sequential", "threads", "stacked"])
def test_it_gives_its_oracles_numbers_by_name_on_lanes_with_every_executor(
    plugin: Any, device_map: Any, executor: str
) -> None:
    models, x, weights = members(), torch.randn(6, 3, dtype=torch.float64), [1.0, 0.5, 3.0]
    ensemble = ProbabilityEnsemble(models, device_map, reducer="entropy_weighted", weights=weights, executor=executor)
    with torch.no_grad():
        expected = oracle(torch.stack([model(x) for model in models]), torch.tensor(weights, dtype=torch.float64))
        torch.testing.assert_close(ensemble(x), expected)
    ensemble.close()


def test_a_class_that_a_member_rules_out_and_a_very_improbable_one_keep_their_order(plugin: Any) -> None:
    reducer = plugin.EntropyWeightedReducer()
    scores = torch.tensor([[0.0, -1000.0, -2000.0, -torch.inf], [0.0, -1100.0, -2100.0, -torch.inf]])
    merged = reducer.lower(reducer.merge(*(reducer.lift(member, 1.0) for member in scores)), 2.0)
    assert merged.argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert merged[:3].isfinite().all()
    assert merged[3] == -torch.inf


def test_a_wrong_option_of_its_reducer_is_told_with_those_it_takes(plugin: Any) -> None:
    spec = {"name": "entropy_weighted", "temprature": 2}
    with pytest.raises(ValueError, match=r"'entropy_weighted': .*'temprature'; it takes class_dim, temperature"):
        ProbabilityEnsemble(members(), reducer=spec)
