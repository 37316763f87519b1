"""The search-path plugin: ours where FusionBench runs, nothing anywhere else."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_search_path import ConfigSearchPath

from hydra_plugins.fusion_ensemble_plugin import FusionEnsembleSearchPath

OURS = "pkg://fusion_ensemble_plugin.config"
HEAVY = {"torch", "transformers", "lightning", "numpy", "fusion_bench"}
OTHER_APP = """
import hydra

@hydra.main(config_path="conf", config_name="app", version_base=None)
def main(cfg):
    print("colour:", cfg.colour.name)

if __name__ == "__main__":
    main()
"""


def heavy_modules_after(statement: str, *, path: Path | None = None) -> set[str]:
    """Return those of HEAVY that a fresh interpreter has loaded after the statement."""
    code = f"import sys\nsys.path[:0] = {[str(path)] if path else []}\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return HEAVY & set(done.stdout.split())


def search_path(main: Path | str) -> ConfigSearchPath:
    """Return the search path that Hydra has made when it asks the plugins."""
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", str(main))
    return path


def extended(main: Path | str) -> list[str | None]:
    """Return the search path's folders after our plugin has seen them."""
    path = search_path(main)
    FusionEnsembleSearchPath().manipulate_search_path(path)
    return [element.path for element in path.get_path()]


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def host_loaded() -> None:
    """Make this a process that runs FusionBench."""
    import fusion_bench  # noqa: F401


@pytest.fixture
def other_app(tmp_path: Path) -> Path:
    """Return the script of a Hydra app that has nothing to do with FusionBench."""
    write(tmp_path / "conf/app.yaml", "defaults: [{colour: red}]\n")
    write(tmp_path / "conf/colour/red.yaml", "name: red\n")
    return write(tmp_path / "app.py", OTHER_APP)


def test_importing_the_search_path_module_loads_nothing_heavy() -> None:
    assert heavy_modules_after("import hydra_plugins.fusion_ensemble_plugin") == set()


def test_the_check_for_heavy_modules_finds_a_plugin_that_imports_torch(tmp_path: Path) -> None:
    write(tmp_path / "hydra_plugins/heavy.py", "import torch\n")
    assert "torch" in heavy_modules_after("import hydra_plugins.heavy", path=tmp_path)


def test_finding_our_config_package_loads_nothing_heavy() -> None:
    assert heavy_modules_after("import fusion_ensemble_plugin.config") == set()


def test_plugins_of_other_packages_are_found_beside_ours(tmp_path: Path) -> None:
    write(tmp_path / "hydra_plugins/other.py", "")
    statement = "import hydra_plugins.other, hydra_plugins.fusion_ensemble_plugin"
    assert heavy_modules_after(statement, path=tmp_path) == set()


def test_another_hydra_app_sees_neither_our_configs_nor_the_hosts(other_app: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, str(other_app), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=other_app.parent).stdout

    path = run("--info", "searchpath")
    assert str(other_app.parent / "conf") in path
    assert "fusion" not in path.replace(str(other_app.parent), "")
    assert "FusionEnsembleSearchPath" in run("--info", "plugins")  # it was there and kept still
    assert run("hydra.run.dir=.", "hydra.output_subdir=null") == "colour: red\n"


def test_a_process_without_fusion_bench_keeps_its_search_path(
    monkeypatch: pytest.MonkeyPatch, host_config_dir: Path
) -> None:
    monkeypatch.delitem(sys.modules, "fusion_bench", raising=False)
    assert extended(host_config_dir) == ["pkg://hydra.conf", str(host_config_dir)]


@pytest.mark.usefixtures("host_loaded")
@pytest.mark.parametrize("off", ["off", "OFF"])
def test_the_switch_leaves_the_search_path_alone(
    off: str, monkeypatch: pytest.MonkeyPatch, host_config_dir: Path
) -> None:
    monkeypatch.setenv("FUSION_ENSEMBLE_PLUGIN", off)
    assert extended(host_config_dir) == ["pkg://hydra.conf", str(host_config_dir)]


@pytest.mark.usefixtures("host_loaded")
def test_ours_comes_before_the_hosts_own_tree(host_config_dir: Path) -> None:
    path = extended(host_config_dir)
    assert path[0] == OURS
    assert path.index(OURS) < path.index(str(host_config_dir))


@pytest.mark.usefixtures("host_loaded")
def test_an_unrelated_config_folder_is_followed_by_ours_and_the_hosts(tmp_path: Path, host_config_dir: Path) -> None:
    assert extended(tmp_path) == ["pkg://hydra.conf", str(tmp_path), OURS, str(host_config_dir)]


def test_the_hosts_configs_are_found_in_a_source_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "config/fabric_model_fusion.yaml", "")
    host = types.ModuleType("fusion_bench")
    host.__path__ = [str(tmp_path / "fusion_bench")]
    monkeypatch.setitem(sys.modules, "fusion_bench", host)
    assert extended("elsewhere")[-1] == str(tmp_path / "config")


def test_a_folder_named_config_beside_the_host_is_not_taken_for_its_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "config/settings.yaml", "")
    write(tmp_path / "fusion_bench_config/fabric_model_fusion.yaml", "")
    host = types.ModuleType("fusion_bench")
    host.__path__ = [str(tmp_path / "fusion_bench")]
    monkeypatch.setitem(sys.modules, "fusion_bench", host)
    assert extended(tmp_path / "config")[-1] == str(tmp_path / "fusion_bench_config")


def test_an_error_inside_is_a_warning_and_the_app_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fusion_bench", types.ModuleType("fusion_bench"))  # a module without __path__
    with pytest.warns(UserWarning, match=r"fusion-ensemble-plugin could not extend .*__path__"):
        path = extended(tmp_path)
    assert str(tmp_path) in path


@pytest.mark.usefixtures("host_loaded")
class TestComposed:
    """What ``method=ensemble/...`` means to a user, by the folder that Hydra starts from."""

    def target(self, config_dir: Path, method: str) -> str:
        with initialize_config_dir(str(config_dir), version_base=None):
            cfg = compose("fabric_model_fusion", [f"method={method}"])
        return str(cfg.method["_target_"])

    def test_the_simple_ensemble_is_ours(self, host_config_dir: Path) -> None:
        assert self.target(host_config_dir, "ensemble/simple_ensemble") == (
            "fusion_ensemble_plugin.SimpleEnsembleAlgorithm"
        )

    def test_the_switch_gives_the_hosts_class(self, host_config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FUSION_ENSEMBLE_PLUGIN", "off")
        assert self.target(host_config_dir, "ensemble/simple_ensemble") == "fusion_bench.method.SimpleEnsembleAlgorithm"

    def test_the_hosts_other_methods_stay(self, host_config_dir: Path) -> None:
        assert self.target(host_config_dir, "simple_average") == "fusion_bench.method.SimpleAverageAlgorithm"

    def test_a_users_own_method_works_beside_ours_and_the_hosts(self, tmp_path: Path) -> None:
        write(tmp_path / "method/ensemble/mine.yaml", "_target_: mine.Ensemble\n")
        assert self.target(tmp_path, "ensemble/mine") == "mine.Ensemble"
        assert self.target(tmp_path, "ensemble/simple_ensemble").startswith("fusion_ensemble_plugin.")
        assert self.target(tmp_path, "simple_average").startswith("fusion_bench.")

    def test_a_users_own_file_of_our_name_wins(self, tmp_path: Path) -> None:
        write(tmp_path / "method/ensemble/simple_ensemble.yaml", "_target_: mine.Ensemble\n")
        assert self.target(tmp_path, "ensemble/simple_ensemble") == "mine.Ensemble"

    def test_a_copy_of_the_hosts_tree_does_not_hide_ours(self, tmp_path: Path, host_config_dir: Path) -> None:
        for name in ("fabric_model_fusion.yaml", "method/ensemble/simple_ensemble.yaml"):
            write(tmp_path / name, (host_config_dir / name).read_text())
        assert self.target(tmp_path, "ensemble/simple_ensemble").startswith("fusion_ensemble_plugin.")
