"""Wheel, source distribution and editable install: what is inside, and that each works in a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import fusion_ensemble_plugin

REPO = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist", "site", "outputs", "*.egg-info", "__pycache__"
)
EMPTY_TREES = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}  # nothing is importable that is not installed
PROBE = """
import importlib.util, pathlib
import fusion_ensemble_plugin.config, hydra_plugins.fusion_ensemble_plugin
print(importlib.util.find_spec("config"))
print(importlib.util.find_spec("hydra_plugins").origin)
print((pathlib.Path(fusion_ensemble_plugin.__file__).parent / "py.typed").is_file())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing but what is installed; a failure shows all that it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **EMPTY_TREES}, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.fail(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What `python -m build` made of a copy of the source tree."""

    source: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the source distribution, and the wheel from it, in isolation."""
    source = tmp_path_factory.mktemp("source") / "repo"
    shutil.copytree(REPO, source, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", cwd=source)
    sdist, wheel = next((source / "dist").glob("*.tar.gz")), next((source / "dist").glob("*.whl"))
    return Built(source, sdist, wheel)


@pytest.fixture(scope="module")
def fresh_python(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment that has the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin/python"
    constraints = REPO / "constraints.txt"
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    run(python, "-m", "pip", "install", "-qq", torch, cwd=folder)
    run(python, "-m", "pip", "install", "-qq", "-c", constraints, built.wheel, cwd=folder)
    return python


def wheel_files(built: Built) -> set[str]:
    """Return the wheel's file names."""
    with zipfile.ZipFile(built.wheel) as archive:
        return set(archive.namelist())


def source_files(folder: Path, installed_as: str) -> set[str]:
    """Return where the folder's modules and configs belong inside the wheel."""
    suffixes = {".py", ".yaml", ".typed"}
    return {
        f"{installed_as}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_the_version_has_one_source() -> None:
    assert version("fusion-ensemble-plugin") == fusion_ensemble_plugin.__version__


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        ("fusion_bench.method", "simple_ensemble", "SimpleEnsembleAlgorithm"),
        ("fusion_bench.model", "parallel_ensemble", "ParallelEnsemble"),
    ],
)
def test_the_classes_are_announced_as_entry_points(group: str, name: str, target: str) -> None:
    (entry,) = entry_points(group=group, name=name)
    assert entry.load() is getattr(fusion_ensemble_plugin, target)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_every_module_and_config_and_no_top_level_config(built: Built) -> None:
    files = wheel_files(built)
    expected = (
        source_files(built.source / "fusion_ensemble_plugin", "fusion_ensemble_plugin")
        | source_files(built.source / "config", "fusion_ensemble_plugin/config")
        | {"hydra_plugins/fusion_ensemble_plugin.py"}
    )
    assert "fusion_ensemble_plugin/py.typed" in expected
    assert "fusion_ensemble_plugin/config/method/ensemble/simple_ensemble.yaml" in expected
    assert {name for name in files if ".dist-info/" not in name} == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_source_distribution_holds_what_the_tests_need(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    tests = {f"tests/{path.name}" for path in (REPO / "tests").glob("*.py")}
    others = {"Makefile", "constraints.txt", "LICENSE", ".ci/run", "config/method/ensemble/simple_ensemble.yaml"}
    assert tests | others <= files


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_the_main_job_is_ours_once_installed(kind: str, built: Built, fresh_python: Path, tmp_path: Path) -> None:
    what = {"wheel": [built.wheel], "sdist": [built.sdist], "editable": ["-e", built.source]}[kind]
    run(fresh_python, "-m", "pip", "install", "-qq", "--no-deps", "--force-reinstall", *what, cwd=tmp_path)
    assert run(fresh_python, "-c", PROBE, cwd=tmp_path).split() == ["None", "None", "True"]
    job = run(fresh_python.parent / "fusion_bench", "--cfg", "job", "method=ensemble/simple_ensemble", cwd=tmp_path)
    assert "_target_: fusion_ensemble_plugin.SimpleEnsembleAlgorithm" in job
    assert list(tmp_path.iterdir()) == []
