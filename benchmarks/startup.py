"""Start-up over the host's: ``fusion_bench --cfg job`` with the plugin switched on and off, in pairs.

Run ``python benchmarks/startup.py [--pairs N] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

COMMAND = [str(Path(sys.executable).with_name("fusion_bench")), "--cfg", "job", "method=ensemble/simple_ensemble"]
LIMIT = 0.1  # seconds of wall clock


def start(switch: str, folder: str) -> tuple[float, float]:
    """Return one start's (wall, CPU) seconds with ``FUSION_ENSEMBLE_PLUGIN`` set to the switch."""
    environment = {**os.environ, "FUSION_ENSEMBLE_PLUGIN": switch}
    wall, cpu = time.perf_counter(), _cpu_of_children()
    subprocess.run(COMMAND, env=environment, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - wall, _cpu_of_children() - cpu


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def paired_starts(pairs: int, folder: str) -> list[dict[str, tuple[float, float]]]:
    """Start both ways ``pairs`` times; which goes first changes from pair to pair."""
    start("on", folder)  # fills the disk cache
    results = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        times = {switch: start(switch, folder) for switch in order}
        results.append(times)
        print(f"pair {number + 1}: on {times['on'][0]:.3f} s, off {times['off'][0]:.3f} s", flush=True)
    return results


def main() -> int:
    """Print the median differences; exit 1 if the wall clock's is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="paired runs (default: 9)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = paired_starts(arguments.pairs, folder)
    wall, cpu = (median(pair["on"][clock] - pair["off"][clock] for pair in pairs) for clock in (0, 1))
    host = median(pair["off"][0] for pair in pairs)
    print(f"start-up: the plugin adds {wall:+.3f} s wall, {cpu:+.3f} s CPU (medians of {len(pairs)} pairs)")
    print(f"          to the host's {host:.3f} s; the limit is {LIMIT} s")
    if arguments.json:
        figures = {"added_wall_s": wall, "added_cpu_s": cpu, "host_wall_s": host, "pairs": pairs}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(wall > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
