"""What ``fusion_bench method=...`` would compose, started in the current folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import packages_distributions, version
from typing import Any

from fusion_bench.utils.hydra_utils import get_default_config_path
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigSource
from omegaconf import OmegaConf

PRIMARY = "fabric_model_fusion"
"""The config that FusionBench starts from; where it lies is a FusionBench config tree."""


@contextmanager
def here() -> Iterator[None]:
    """Start Hydra as ``fusion_bench`` does in the current folder."""
    folder: str = get_default_config_path()  # type: ignore[no-untyped-call]
    with initialize_config_dir(folder, version_base=None):
        yield


def method_target(name: str) -> str:
    """Return the class that ``method=name`` stands for; call it inside `here`.

    Raises:
        hydra.errors.HydraException: If it does not compose.
    """
    return str(OmegaConf.select(compose(PRIMARY, [f"method={name}"]), "method._target_"))


def added_methods() -> dict[str, str]:
    """Return the methods that packages and users have added to FusionBench's own; call it inside `here`.

    Returns:
        What one writes after ``method=``, and the package, or else the folder, that brings it.
    """
    found: dict[str, str] = {}
    for source in GlobalHydra.instance().config_loader().get_sources():
        if _has_methods(source):
            for name in _names(source, "method"):
                found.setdefault(name.removeprefix("method/"), _origin(source))
    return found


def package_of(module: str) -> str:
    """Return the installed package that a module comes from, with its version; the module's own name if none does.

    Examples:
        >>> package_of("fusion_ensemble_plugin.reducer").split()[0]
        'fusion-ensemble-plugin'
    """
    top = module.partition(".")[0]
    package = next(iter(_packages().get(top, [])), None)
    return top if package is None else f"{package} {version(package)}"


@cache
def _packages() -> Mapping[str, list[str]]:
    """Return the packages that bring each importable name; it reads every package's list of files, so only once."""
    return packages_distributions()


def _has_methods(source: ConfigSource) -> bool:
    """Say whether a source is somebody's addition: not Hydra's own, not a FusionBench tree."""
    if source.provider in ("hydra", "schema") or source.scheme() == "structured":
        return False
    return source.available() and source.is_group("method") and not source.is_config(PRIMARY)


def _names(source: ConfigSource, group: str) -> Iterator[str]:
    for name in source.list(group, ObjectType.CONFIG):
        yield f"{group}/{name}"
    for name in source.list(group, ObjectType.GROUP):
        yield from _names(source, f"{group}/{name}")


def _origin(source: Any) -> str:
    if source.scheme() == "pkg":
        return package_of(source.path)
    return f"folder {os.path.relpath(source.path)}"
