"""Look whether this package can work here: versions, the config that FusionBench would find in this folder, devices."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import PackageNotFoundError, version

from fusion_ensemble_plugin.commands.table import table

HELP = "print versions, whether FusionBench finds this package from this folder, and devices"

METHOD = "ensemble/simple_ensemble"
"""FusionBench ships a method of this name too, so it shows whose config wins."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take none."""


def run(arguments: argparse.Namespace) -> int:
    """Print what there is.

    Returns:
        0, or 1 if a version is not a tested one or the method is not ours.
    """
    tested, versions = _versions()
    print(table("versions", versions))
    print("  " + ("this combination is tested" if tested else "this combination is NOT tested"))
    ours, where = _resolved()
    print(table(f"method={METHOD} in {os.getcwd()}", [(where,)]))
    print(table("devices", _devices()))
    return 0 if tested and ours else 1


def _versions() -> tuple[bool, list[tuple[str, str, str]]]:
    from packaging.specifiers import SpecifierSet

    from fusion_ensemble_plugin.host import TESTED

    all_tested, rows = True, [("fusion-ensemble-plugin", _version("fusion-ensemble-plugin"), "")]
    for package, specifier in TESTED.items():
        installed = _version(package)
        tested = installed != "missing" and SpecifierSet(specifier).contains(installed, prereleases=True)
        all_tested &= tested
        rows.append((package, installed, f"{'tested' if tested else 'NOT tested'}: {specifier}"))
    return all_tested, rows


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _resolved() -> tuple[bool, str]:
    """Say whether the method is ours, and in words what it is."""
    from hydra.errors import HydraException

    from fusion_ensemble_plugin.composition import here, method_target

    try:
        with here():
            target = method_target(METHOD)
    except HydraException as error:
        return False, f"does not compose: {error}".splitlines()[0]
    if target.startswith("fusion_ensemble_plugin."):
        return True, f"{target}: this package"
    off = os.environ.get("FUSION_ENSEMBLE_PLUGIN", "").lower() == "off"
    why = "FUSION_ENSEMBLE_PLUGIN=off is set" if off else "a nearer config has it"
    return False, f"{target}: NOT this package ({why})"


def _devices() -> list[tuple[str, str]]:
    import psutil
    import torch

    from fusion_ensemble_plugin.device_map import accelerators, present_devices
    from fusion_ensemble_plugin.memory import show_bytes

    total = show_bytes(psutil.virtual_memory().total)
    rows = [("cpu", f"{torch.get_num_threads()} torch threads, {total}")]
    for device in accelerators(present_devices()):
        if device.startswith("cuda"):
            properties = torch.cuda.get_device_properties(device)
            rows.append((device, f"{properties.name}, {show_bytes(properties.total_memory)}"))
        else:
            rows.append((device, ""))
    return rows
