"""FusionBench, the host: which versions are tested."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

log = logging.getLogger(__name__)

TESTED_HOST = ">=0.2.33,<0.2.34"
"""The versions of fusion-bench that the tests of this package run with."""


@cache
def warn_if_untested() -> None:
    """Say once a process if the installed FusionBench is not one that this package is tested with."""
    installed = version("fusion-bench")
    if not SpecifierSet(TESTED_HOST).contains(installed, prereleases=True):
        log.warning(
            "fusion-bench %s is not among the versions this package is tested with (%s)", installed, TESTED_HOST
        )
