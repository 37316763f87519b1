"""Reducers and executors by name: our own and those of installed plugins."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
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
        plugins: Plugin name to its state in a line: "loaded", or the error that kept it from loading.
        packages: Plugin name to the installed package that announces it, with its version.
    """

    reducers: dict[str, tuple[Callable[..., Reducer], str]] = field(default_factory=dict)
    executors: dict[str, tuple[Callable[..., Executor], str]] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def failed(self, plugin: str, error: Exception) -> None:
        """Note, and log, that a plugin is of no use."""
        self.plugins[plugin] = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("plugin %r could not be loaded: %s", plugin, self.plugins[plugin])


@cache
def registry() -> Registry:
    """Load all plugins, once a process.

    A plugin that fails to import, or fails when its hook is called, is logged and left out; everything else works on.

    Raises:
        ValueError: If two plugins have one name, or register one name.
        pluggy.PluginValidationError: If a hook has an unknown name or a wrong signature.
    """
    found = Registry()
    manager = pluggy.PluginManager(hookspecs.ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, BUILTIN)
    for entry in entry_points(group=hookspecs.ENTRY_POINT_GROUP):
        _load(manager, entry, found)
    manager.check_pending()
    _collect(manager, "register_reducers", found.reducers, found)
    _collect(manager, "register_executors", found.executors, found)
    return found


def make_reducer(spec: str | Reducer | Callable[..., Any] | Mapping[str, Any]) -> Reducer:
    """Return the reducer that a user chose.

    Args:
        spec: A name; a `Reducer`; a mapping with ``_target_`` and options, or with ``name`` and options; or a function
            ``(members, *shape) -> (*shape)``.

    Raises:
        ValueError: If the name is unknown, listing the known ones, or if the options are wrong.
        TypeError: If ``spec`` is none of these.
    """
    if isinstance(spec, Mapping):
        return make_reducer(_instantiated(spec)) if "_target_" in spec else _named(dict(spec))
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


def _load(manager: pluggy.PluginManager, entry: EntryPoint, found: Registry) -> None:
    """Load one plugin, or note why it does not load."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    if entry.name == BUILTIN or entry.name in found.plugins:
        other = found.packages.get(entry.name, "this package")
        raise ValueError(f"plugin {entry.name!r} comes from both {other} and {package}; uninstall one")
    found.packages[entry.name] = package
    try:
        plugin = entry.load()
        manager.register(plugin, entry.name)
    except pluggy.PluginValidationError:
        raise
    except Exception as error:
        found.failed(entry.name, error)
    else:
        found.plugins[entry.name] = "loaded" if manager.get_hookcallers(plugin) else "loaded, but has no hook"


def _collect(
    manager: pluggy.PluginManager, hook: str, into: dict[str, tuple[Callable[..., Any], str]], found: Registry
) -> None:
    """Call one hook of each plugin in turn, so that each name is known to come from it."""
    plugins = manager.list_name_plugin()  # in the order in which they were loaded: ours first
    for source, plugin in plugins:
        others = [other for _, other in plugins if other is not plugin]
        registered: dict[str, Callable[..., Any]] = {}
        try:
            manager.subset_hook_caller(hook, others)(register=partial(_register, registered))
        except Exception as error:
            found.failed(source, error)
            continue
        for name, factory in registered.items():
            if name in into:
                raise ValueError(
                    f"{hook}: {name!r} comes from both {into[name][1]!r} and {source!r}; rename or uninstall one"
                )
            into[name] = (factory, source)


def _register(into: dict[str, Callable[..., Any]], name: str, factory: Callable[..., Any]) -> None:
    """What a plugin is given to call."""
    if not (isinstance(name, str) and name and callable(factory)):
        raise TypeError(f"register({name!r}, {factory!r}): a name and what makes the object are needed")
    if name in into:
        raise ValueError(f"{name!r} is registered twice")
    into[name] = factory


def _named(options: dict[str, Any]) -> Reducer:
    """Make the reducer of a name, with options."""
    name = str(options.pop("name", ""))
    factory = _find(name, registry().reducers, "reducer")
    try:
        signature(factory).bind(**options)
    except TypeError as error:
        takes = ", ".join(signature(factory).parameters) or "no options"
        raise ValueError(f"reducer {name!r}: {error}; it takes {takes}") from None
    made = factory(**options)
    if not isinstance(made, Reducer):
        raise TypeError(f"reducer {name!r}: its factory made a {type(made).__name__} without lift, merge and lower")
    return made


def _instantiated(spec: Mapping[str, Any]) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(spec))
    except InstantiationException as error:
        raise ValueError(f"reducer={dict(spec)}: {error}") from error


def _find(name: str, known: Mapping[str, tuple[Callable[..., Any], str]], kind: str, *also: str) -> Callable[..., Any]:
    if name in known:
        return known[name][0]
    names = sorted([*known, *also])
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")
