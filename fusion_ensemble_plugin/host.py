"""FusionBench, the host: which versions are tested."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

log = logging.getLogger(__name__)

TESTED = {
    "fusion-bench": ">=0.2.33,<0.2.34",
    "transformers": ">=5.5,<5.6",
    "hydra-core": ">=1.3,<1.4",
    "torch": ">=2.13,<2.14",
}
"""The versions that the tests of this package run with; ``constraints.txt`` has the exact ones."""

TESTED_HOST = TESTED["fusion-bench"]


@cache
def warn_if_untested() -> None:
    """Say once a process if the installed FusionBench is not one that this package is tested with."""
    installed = version("fusion-bench")
    if not SpecifierSet(TESTED_HOST).contains(installed, prereleases=True):
        log.warning(
            "fusion-bench %s is not among the versions this package is tested with (%s)", installed, TESTED_HOST
        )
