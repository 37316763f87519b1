"""``python -m fusion_ensemble_plugin``: what there is, where it comes from, and whether it works from this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from fusion_ensemble_plugin import __version__, host
from fusion_ensemble_plugin.__main__ import main
from fusion_ensemble_plugin.commands import COMMANDS
from fusion_ensemble_plugin.plugins import registry

REPO = Path(__file__).parent.parent
METHODS = sorted((REPO / "config/method/ensemble").glob("*.yaml"))

GOOD = """
from fusion_ensemble_plugin.executor import SequentialExecutor
from fusion_ensemble_plugin.hookspecs import hookimpl
from fusion_ensemble_plugin.reducer import MeanReducer

class Own(MeanReducer): pass

@hookimpl
def register_reducers(register):
    register("own_mean", Own)

@hookimpl
def register_executors(register):
    register("own_executor", SequentialExecutor)
"""
BROKEN = "import a_package_that_nobody_has"


def install(folder: Path, plugin: str, code: str, package: str | None = None) -> None:
    """Put a package with one plugin into a folder, as pip would."""
    folder.mkdir(exist_ok=True)
    package = package or plugin
    (folder / f"{package}_hooks.py").write_text(code)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[fusion_ensemble_plugin]\n{plugin} = {package}_hooks\n")


@pytest.fixture
def new_registry() -> Iterator[None]:
    """Load the plugins anew, before and after."""
    registry.cache_clear()
    yield
    registry.cache_clear()


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "fusion_ensemble_plugin", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def section(printed: str, title: str) -> list[list[str]]:
    """Return the cells of the table below a title."""
    lines = iter(printed.splitlines())
    assert any(line.startswith(title) for line in lines), f"no {title!r} in\n{printed}"
    rows = []
    for line in lines:
        if not line.startswith("  "):
            break
        rows.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return rows


@pytest.mark.slow
def test_plugins_lists_everything_with_its_package_and_a_broken_plugins_error_in_a_line(tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "empty"
    here.mkdir()
    install(site, "good", GOOD)
    install(site, "broken", BROKEN)
    done = run("plugins", cwd=here, PYTHONPATH=str(site))
    ours = f"fusion-ensemble-plugin {__version__}"
    methods = {name: (target, package) for name, target, package in section(done.stdout, "methods")}
    for path in METHODS:
        target = yaml.safe_load(path.read_text())["_target_"]
        assert methods[f"ensemble/{path.stem}"] == (target, ours)
    reducers = {name: rest for name, *rest in section(done.stdout, "reducers")}
    assert reducers["mean"] == ["fusion_ensemble_plugin.reducer.MeanReducer", ours]
    assert reducers["own_mean"] == ["good_hooks.Own", "good 1.2"]
    executors = {name: rest[-1] for name, *rest in section(done.stdout, "executors")}
    assert executors == {"sequential": ours, "threads": ours, "stacked": ours, "own_executor": "good 1.2"}
    error = "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    assert sorted(section(done.stdout, "plugins")) == [["broken", error, "broken 1.2"], ["good", "loaded", "good 1.2"]]
    assert done.returncode == 1
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_doctor_finds_all_well_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "database.yaml").write_text("port: 5432\n")
    done = run("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    versions = {row[0]: row[1] for row in section(done.stdout, "versions")[:-1]}
    for package in ("fusion-ensemble-plugin", "fusion-bench", "torch", "transformers", "hydra-core"):
        assert versions[package] == version(package)
    assert "  this combination is tested\n" in done.stdout
    (resolved,) = section(done.stdout, f"method=ensemble/simple_ensemble in {tmp_path}")
    assert resolved == ["fusion_ensemble_plugin.SimpleEnsembleAlgorithm: this package"]
    assert section(done.stdout, "devices")[0][0] == "cpu"


def test_doctor_says_that_the_plugin_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSION_ENSEMBLE_PLUGIN", "off")
    assert main(["doctor"]) == 1
    (resolved,) = section(capsys.readouterr().out, "method=ensemble/simple_ensemble")
    assert resolved[0].startswith("fusion_bench.method.SimpleEnsembleAlgorithm: NOT this package")
    assert "FUSION_ENSEMBLE_PLUGIN=off" in resolved[0]


def test_doctor_says_that_the_folders_own_config_is_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "config/method/ensemble/simple_ensemble.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: my_project.Ensemble\n")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 1
    (resolved,) = section(capsys.readouterr().out, "method=ensemble/simple_ensemble")
    assert resolved == ["my_project.Ensemble: NOT this package (a nearer config has it)"]


def test_doctor_says_which_version_is_not_a_tested_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(host.TESTED, "transformers", "<5")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert ["transformers", version("transformers"), "NOT tested: <5"] in section(printed, "versions")
    assert "this combination is NOT tested" in printed


def test_plugins_lists_the_folders_own_methods_and_those_that_do_not_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "config/method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: my_project.Mine\n")
    (own / "wrong.yaml").write_text("defaults: [/method/no_such]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["plugins"]) == 0
    rows = {name: rest for name, *rest in section(capsys.readouterr().out, "methods")}
    assert rows["mine"] == ["my_project.Mine", "folder config"]
    assert rows["wrong"][0].startswith("MissingConfigException: ")
    assert "ensemble/simple_ensemble" in rows


def test_plugins_lists_no_method_of_ours_when_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSION_ENSEMBLE_PLUGIN", "off")
    assert main(["plugins"]) == 0
    assert section(capsys.readouterr().out, "methods") == [["none"]]


@pytest.mark.usefixtures("new_registry")
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (GOOD.replace('"own_mean"', '"mean"'), "'mean' comes from both 'fusion-ensemble-plugin' and 'wrong'"),
        (GOOD.replace("register_reducers(register)", "register_reducers(registry)"), "registry"),
    ],
    ids=["a name that is taken", "a hook with a wrong signature"],
)
def test_plugins_says_what_keeps_the_plugins_from_working_together(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "wrong", code, package=f"wrong{len(code)}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["plugins"]) == 1
    assert told in " ".join(cell for row in section(capsys.readouterr().out, "plugins") for cell in row)


def test_help_names_every_command_and_a_wrong_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in printed] == []
    with pytest.raises(SystemExit, match="2"):
        main(["diagnose"])
    assert "'diagnose'" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fusion-ensemble-plugin {__version__}\n"
