"""Prints this environment's packages as constraints; `make constraints` runs it in a fresh one."""

from __future__ import annotations

import platform
from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST_PYTHON = "3.10"
LEFT_OUT = {"fusion-ensemble-plugin", "pip", "setuptools"}


def constraint(name: str, version: str, needs_python: str) -> str:
    """Return one line; a package that the oldest Python cannot have binds newer ones only."""
    newer_only = not SpecifierSet(needs_python).contains(f"{OLDEST_PYTHON}.99")
    marker = f' ; python_version > "{OLDEST_PYTHON}"' if newer_only else ""
    return f"{name}=={version.split('+')[0]}{marker}"  # 2.13.0 admits 2.13.0+cpu as well as CUDA builds


def main() -> None:
    """Print a header and one sorted line a package."""
    lines = {
        constraint(dist.name, dist.version, str(dist.metadata.json.get("requires_python", "")))
        for dist in distributions()
        if dist.name not in LEFT_OUT
    }
    print("# The versions this package is tested with, installed together by `make constraints`")
    print(f"# on Python {platform.python_version()}, {platform.system()}.")
    print("\n".join(sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
