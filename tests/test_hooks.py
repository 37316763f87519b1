"""Plugins as users install them: packages on the path whose entry points are found, good ones and bad ones."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
from fusion_bench.modelpool import BaseModelPool

from fusion_ensemble_plugin import ParallelEnsemble, Reducer, SimpleEnsembleAlgorithm, hookspecs
from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.plugins import BUILTIN, make_reducer, registry

Install = Callable[..., None]

GOOD = """
from fusion_ensemble_plugin.hookspecs import hookimpl

class Last:
    ordered = True
    def lift(self, output, weight): return output
    def merge(self, left, right): return right
    def lower(self, state, total_weight): return state

@hookimpl
def register_reducers(register):
    register("last", Last)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that puts a package with one plugin on the path, as pip would."""
    modules: list[str] = []

    def write(plugin: str, code: str, module: str | None = None, package: str | None = None) -> None:
        module, package = module or f"{plugin}_module", package or plugin
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[fusion_ensemble_plugin]\n{plugin} = {module}\n")

    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    yield write
    registry.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def test_a_plugins_reducer_is_used_by_name_and_its_package_is_known(install: Install) -> None:
    install("good", GOOD)
    ensemble = ParallelEnsemble([torch.nn.Identity(), torch.nn.ReLU()], reducer="last")
    assert ensemble(torch.tensor([-2.0, 4.0])).tolist() == [0.0, 4.0]
    assert registry().reducers["last"][1] == "good"
    assert registry().plugins == {"good": "loaded"}
    assert registry().packages == {"good": "good 1.2"}


def test_a_plugins_executor_is_used_by_name(install: Install) -> None:
    code = """
from fusion_ensemble_plugin.executor import SequentialExecutor
from fusion_ensemble_plugin.hookspecs import hookimpl
ran = []
class Noted(SequentialExecutor):
    def run(self, calls):
        ran.extend(calls)
        return super().run(calls)
@hookimpl
def register_executors(register):
    register("noted", Noted)
"""
    install("noting", code)
    ParallelEnsemble([torch.nn.Linear(1, 1)], ["cpu:3"], executor="noted")(torch.zeros(1, 1))
    import noting_module  # type: ignore[import-not-found]

    assert noting_module.ran == ["cpu:3"]


def test_our_own_reducers_and_executors_come_through_the_same_hooks() -> None:
    sources = {source for _, source in [*registry().reducers.values(), *registry().executors.values()]}
    assert sources == {BUILTIN}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
        ("def f(:", "SyntaxError: "),
        (GOOD.replace("Last)", "Last, 3)"), "TypeError: "),
        (GOOD.replace('"last", Last', '"", Last'), "TypeError: register('', "),
        (GOOD.replace('"last", Last', '"last", "Last"'), "TypeError: register('last', 'Last')"),
        (GOOD + '    register("last", Last)\n', "ValueError: 'last' is registered twice"),
    ],
)
def test_a_plugin_that_fails_is_told_in_a_line_and_harms_nobody_else(
    code: str, reason: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("broken", code)
    install("good", GOOD)
    with caplog.at_level(logging.WARNING):
        assert registry().plugins["broken"].startswith(reason)
    assert "\n" not in registry().plugins["broken"]
    assert "plugin 'broken' could not be loaded" in caplog.text
    assert registry().plugins["good"] == "loaded"
    assert isinstance(make_reducer("last"), Reducer)
    assert isinstance(make_reducer("mean"), Reducer)


def test_a_plugin_without_a_hook_is_told(install: Install) -> None:
    install("empty", GOOD.replace("@hookimpl\n", ""))
    assert registry().plugins == {"empty": "loaded, but has no hook"}


def test_two_plugins_that_register_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("good", GOOD)
    install("other", GOOD)
    with pytest.raises(ValueError, match=r"register_reducers: 'last' comes from both '\w+' and '\w+'; rename or"):
        registry()


def test_a_plugin_that_registers_one_of_our_names_is_an_error_that_names_both(install: Install) -> None:
    install("greedy", GOOD.replace('"last"', '"mean"'))
    with pytest.raises(ValueError, match="'mean' comes from both 'fusion-ensemble-plugin' and 'greedy'"):
        registry()


def test_two_packages_with_one_plugin_name_are_an_error_that_names_both(install: Install) -> None:
    install("twin", GOOD, module="one_module", package="one")
    install("twin", GOOD, module="two_module", package="two")
    with pytest.raises(ValueError, match=r"plugin 'twin' comes from both (one|two) 1\.2 and (one|two) 1\.2; uninstall"):
        registry()


def test_a_hook_with_a_wrong_signature_is_an_error_that_names_the_argument(install: Install) -> None:
    install("wrong", GOOD.replace("(register):", "(registrar):").replace("register(", "registrar("))
    with pytest.raises(pluggy.PluginValidationError, match="registrar"):
        registry()


def test_a_hook_with_an_unknown_name_is_an_error_that_names_it(install: Install) -> None:
    install("typo", GOOD.replace("register_reducers", "register_reducer"))
    with pytest.raises(pluggy.PluginValidationError, match="register_reducer"):
        registry()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (GOOD.replace('"last"', '"mean"'), "'mean' comes from both 'fusion-ensemble-plugin' and 'wrong'"),
        (GOOD.replace("(register):", "(registrar):").replace("register(", "registrar("), "Argument(s) {'registrar'}"),
        (GOOD.replace("register_reducers", "register_reducer"), "unknown hook 'register_reducer'"),
    ],
    ids=["a name that is taken", "a wrong argument", "an unknown hook"],
)
def test_a_method_tells_of_wrong_plugins_once_with_all_else_that_is_wrong_before_it_loads_a_model(
    code: str, told: str, install: Install
) -> None:
    class Unloadable(BaseModelPool):
        def load_model(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
            raise AssertionError("a model was loaded")

    install("wrong", code)
    method = SimpleEnsembleAlgorithm(device_map="teapot", dtype="int8")
    with pytest.raises(ValueError, match="teapot") as caught:
        method.run(Unloadable(models={"mnist": None}))
    assert str(caught.value).count(told) == 1
    assert "dtype='int8'" in str(caught.value)


def test_the_whole_contract_is_two_hooks_with_one_argument_each() -> None:
    hooks = {
        name: str(inspect.signature(hook))
        for name, hook in vars(hookspecs).items()
        if hasattr(hook, f"{hookspecs.ENTRY_POINT_GROUP}_spec")
    }
    assert hooks == {
        "register_reducers": "(register: 'RegisterReducer') -> 'Any'",
        "register_executors": "(register: 'RegisterExecutor') -> 'Any'",
    }
    assert (hookspecs.Reducer, hookspecs.Executor) == (Reducer, Executor)
