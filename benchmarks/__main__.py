"""Run all benchmarks, each in a process of its own, and print one table of what they found.

``python -m benchmarks`` measures; with ``--only lanes growth`` a few. ``--quick`` shows that all of them work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
from pathlib import Path

from benchmarks.report import RESULTS, run_module
from benchmarks.table import NAMES, on_screen

SCRIPTS = ("startup", "decoding", "training")
"""Benchmarks that print and keep their figures in their own way."""


def main() -> int:
    """Run them one after another; returns 1 if one failed or missed a limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small runs; keep no results unless --results says where")
    parser.add_argument("--results", type=Path, default=None, help="where figures and plots go")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES + SCRIPTS, help="run these")
    asked = parser.parse_args()
    options = ["--quick"] * asked.quick + (["--results", str(asked.results)] if asked.results else [])
    chosen = asked.only or (NAMES if asked.quick else NAMES + SCRIPTS)
    # imports cost seconds: they are done once, in a process from which the others are forked
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"benchmarks.{name}" for name in NAMES])
    failed = False
    for name in chosen:
        print(f"== {name}", flush=True)
        if name in SCRIPTS:
            code: int | None = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))]).returncode
        else:
            process = context.Process(target=run_module, args=(name, options))
            process.start()
            process.join()
            code = process.exitcode
        failed |= code != 0
    if asked.results or not asked.quick:
        on_screen(asked.results or RESULTS)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
