"""Start-up over the host's: ``fusion_bench --cfg job`` with the plugin switched on and off, in pairs.

Run ``python benchmarks/startup.py [--pairs N] [--json FILE]``.
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
from statistics import median

COMMAND = [str(Path(sys.executable).with_name("fusion_bench")), "--cfg", "job", "method=ensemble/simple_ensemble"]
LIMIT = 0.1  # seconds, the promise that CHANGELOG and README make


def seconds(switch: str, folder: str) -> float:
    """Return how long one start takes with ``FUSION_ENSEMBLE_PLUGIN`` set to the switch."""
    start = time.perf_counter()
    subprocess.run(
        COMMAND, env={**os.environ, "FUSION_ENSEMBLE_PLUGIN": switch}, cwd=folder, check=True, capture_output=True
    )
    return time.perf_counter() - start


def differences(pairs: int, folder: str) -> list[tuple[float, float]]:
    """Return (on, off) in seconds a pair; which of the two goes first changes from pair to pair."""
    seconds("on", folder)  # fills the disk cache
    results = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        times = {switch: seconds(switch, folder) for switch in order}
        results.append((times["on"], times["off"]))
        print(f"pair {number + 1}: on {times['on']:.3f} s, off {times['off']:.3f} s", flush=True)
    return results


def main() -> int:
    """Print the median difference; exit 1 if it is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="paired runs (default: 9)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = differences(arguments.pairs, folder)
    added = median(on - off for on, off in pairs)
    host = median(off for _, off in pairs)
    print(f"start-up: the plugin adds {added:+.3f} s (median of {len(pairs)} pairs) to the host's {host:.3f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"added_s": added, "host_s": host, "pairs_s": pairs}, indent=2) + "\n")
    return int(added > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
