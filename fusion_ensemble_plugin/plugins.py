"""Reducers and executors by name: our own and those of installed plugins."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pluggy

from fusion_ensemble_plugin import builtin, hookspecs
from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.reducer import CallableReducer, Reducer

log = logging.getLogger(__name__)

BUILTIN = "fusion-ensemble-plugin"


@dataclass
class Registry:
    """What the plugins registered.

    Attributes:
        reducers: Name to (factory, plugin that registered it).
        executors: Likewise.
        plugins: Plugin name to "loaded" or the error, in a line, that kept it from loading.
    """

    reducers: dict[str, tuple[Callable[..., Reducer], str]] = field(default_factory=dict)
    executors: dict[str, tuple[Callable[..., Executor], str]] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)


@cache
def registry() -> Registry:
    """Load all plugins, once a process.

    A plugin that fails to import is logged and left out; everything else works on.

    Raises:
        ValueError: If two plugins register one name.
        pluggy.PluginValidationError: If a hook has an unknown name or a wrong signature.
    """
    found = Registry()
    manager = pluggy.PluginManager(hookspecs.ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, BUILTIN)
    for entry in entry_points(group=hookspecs.ENTRY_POINT_GROUP):
        try:
            manager.register(entry.load(), entry.name)
            found.plugins[entry.name] = "loaded"
        except pluggy.PluginValidationError:
            raise
        except Exception as error:
            found.plugins[entry.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("plugin %r could not be loaded: %s", entry.name, found.plugins[entry.name])
    manager.check_pending()
    _collect(manager, "register_reducers", found.reducers)
    _collect(manager, "register_executors", found.executors)
    return found


def make_reducer(spec: str | Reducer | Callable[..., Any] | Mapping[str, Any]) -> Reducer:
    """Return the reducer that a user chose.

    Args:
        spec: A name; a `Reducer`; a mapping with ``_target_`` and options, or with ``name`` and options; or a function
            ``(members, *shape) -> (*shape)``.

    Raises:
        ValueError: If the name is unknown; lists the known ones.
        TypeError: If ``spec`` is none of these.
    """
    if isinstance(spec, Mapping):
        options = dict(spec)
        if "_target_" in options:
            from hydra.utils import instantiate

            return make_reducer(instantiate(options))
        named: Reducer = _find(str(options.pop("name", "")), registry().reducers, "reducer")(**options)
        return named
    if isinstance(spec, str):
        return make_reducer({"name": spec})
    if isinstance(spec, type):
        return make_reducer(spec())
    if isinstance(spec, Reducer):
        return spec
    if callable(spec):
        return CallableReducer(spec)
    raise TypeError(f"reducer={spec!r}: a name, a Reducer, a mapping with _target_ or a function is needed")


def executor_factory(spec: str | Callable[..., Executor], automatic: str = "sequential") -> Callable[..., Executor]:
    """Return what makes the executor that a user chose: a name, "auto" for the one named ``automatic``, or a factory.

    Raises:
        ValueError: If the name is unknown; lists the known ones.
    """
    if callable(spec):
        return spec
    return _find(automatic if spec == "auto" else spec, registry().executors, "executor", "auto")


def _collect(manager: pluggy.PluginManager, hook: str, into: dict[str, tuple[Callable[..., Any], str]]) -> None:
    """Call one hook of each plugin in turn, so that each name is known to come from it."""
    for plugin in manager.get_plugins():
        source = manager.get_name(plugin) or repr(plugin)
        others = [other for other in manager.get_plugins() if other is not plugin]

        def register(name: str, factory: Callable[..., Any], source: str = source) -> None:
            if name in into:
                raise ValueError(
                    f"{hook}: {name!r} comes from both {into[name][1]!r} and {source!r}; rename or uninstall one"
                )
            into[name] = (factory, source)

        manager.subset_hook_caller(hook, others)(register=register)


def _find(name: str, known: Mapping[str, tuple[Callable[..., Any], str]], kind: str, *also: str) -> Callable[..., Any]:
    if name in known:
        return known[name][0]
    names = sorted([*known, *also])
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")
