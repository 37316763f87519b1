"""Other versions of FusionBench run, with one warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch import nn

from fusion_ensemble_plugin import SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.host import TESTED, TESTED_HOST, warn_if_untested

REPO = Path(__file__).parent.parent
TWO_RUNS = """
import logging
from torch import nn
from fusion_ensemble_plugin import SimpleEnsembleAlgorithm

logging.basicConfig(format="%(levelname)s %(message)s")
for _ in range(2):
    SimpleEnsembleAlgorithm().run([nn.Identity()])
"""


def warnings_with(host: str, folder: Path) -> list[str]:
    """Return the warnings of two runs in a process that finds this version of FusionBench."""
    metadata = folder / f"fusion_bench-{host}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: fusion-bench\nVersion: {host}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPO)])}
    done = subprocess.run([sys.executable, "-c", TWO_RUNS], env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stderr.splitlines() if "fusion-bench" in line]


def test_an_untested_host_is_told_once_a_process_with_the_tested_range(tmp_path: Path) -> None:
    (warning,) = warnings_with("9.9.9", tmp_path)
    assert warning.startswith("WARNING fusion-bench 9.9.9")
    assert TESTED_HOST in warning


def test_the_installed_host_is_a_tested_one(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_untested.cache_clear()
    SimpleEnsembleAlgorithm().run([nn.Identity()])
    assert caplog.messages == []


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: Version(pinned[name]) in SpecifierSet(tested) for name, tested in TESTED.items()} == dict.fromkeys(
        TESTED, True
    )
