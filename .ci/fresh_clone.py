"""Measure `make demo` and `make test` as a newcomer has them: a fresh clone, no environment, an empty cache folder.

    python .ci/fresh_clone.py demo test

prints a line of JSON for each target: seconds, and the peak of the memory that all its processes held together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPO = Path(__file__).parent.parent


def measure(target: str, clone: Path, environment: dict[str, str]) -> dict[str, object]:
    """Run one target of the Makefile; its output goes to a file beside the clone."""
    output = clone.parent / f"{target}.log"
    start, peak = time.monotonic(), 0
    with output.open("w") as log:
        make = subprocess.Popen(["make", target], cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while make.poll() is None:
            peak = max(peak, memory(psutil.Process(make.pid)))
            time.sleep(0.25)
    figures = {"target": target, "exit": make.returncode, "seconds": round(time.monotonic() - start, 1)}
    if make.returncode:
        print(output.read_text()[-5000:], file=sys.stderr)
    return {**figures, "peak_gib": round(peak / 2**30, 2), "cores": os.cpu_count()}


def memory(root: psutil.Process) -> int:
    """Return the bytes that a process and its children hold, pages that they share counted once each."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):  # gone meanwhile, or a system that does not tell
            continue
    return total


def main() -> int:
    """Clone the last commit into a temporary folder and measure each target there, in the order given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+")
    targets = parser.parse_args().targets
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", REPO, clone], check=True)
        environment = {**os.environ, "FUSION_ENSEMBLE_CACHE": f"{folder}/cache"}
        results = [measure(target, clone, environment) for target in targets]
    for result in results:
        print(json.dumps(result))
    return max(int(bool(result["exit"])) for result in results)


if __name__ == "__main__":
    sys.exit(main())
