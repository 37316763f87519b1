"""List every method, reducer and executor with where it comes from, and the state of each installed plugin."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from fusion_ensemble_plugin.commands.table import table

HELP = "list methods, reducers, executors and plugins"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take none."""


def run(arguments: argparse.Namespace) -> int:
    """Print the lists.

    Returns:
        0, or 1 if a plugin could not be loaded.
    """
    import pluggy

    from fusion_ensemble_plugin.plugins import registry

    print(table("methods (fusion_bench method=NAME)", _methods()))
    try:
        found = registry()
    except (ValueError, pluggy.PluginValidationError) as error:
        print(table("plugins", [(line,) for line in str(error).splitlines() if line]))
        return 1
    print(table("reducers", _factories(found.reducers, found.packages)))
    print(table("executors", _factories(found.executors, found.packages)))
    states = [(name, state, found.packages.get(name, "")) for name, state in found.plugins.items()]
    print(table("plugins", states, none="none installed"))
    return 0 if all(state.startswith("loaded") for state in found.plugins.values()) else 1


def _methods() -> list[tuple[str, str, str]]:
    from hydra.errors import HydraException

    from fusion_ensemble_plugin.composition import added_methods, here, method_target

    rows = []
    with here():
        for name, origin in sorted(added_methods().items()):
            try:
                target = method_target(name)
            except HydraException as error:
                target = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append((name, target, origin))
    return rows


def _factories(
    found: Mapping[str, tuple[Callable[..., Any], str]], packages: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    from fusion_ensemble_plugin.composition import package_of

    rows = []
    for name, (factory, plugin) in sorted(found.items()):
        made_by = f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"
        rows.append((name, made_by, packages.get(plugin) or package_of("fusion_ensemble_plugin")))
    return rows
