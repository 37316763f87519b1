"""What every test module shares: a clean environment, no leaked threads, and the real command line."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
# tqdm's refresher and the watchdog: one a process, by design
LIBRARY_THREADS = ("TMonitor", "tqdm_monitor", "pytest_timeout")

# a shell's background job ignores Control-C, and so would the processes that tests start; some tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def plugin_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a switch that the developer's shell has set out of the tests."""
    monkeypatch.delenv("FUSION_ENSEMBLE_PLUGIN", raising=False)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread behind: nothing outlives its ensemble."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5.0
    while leaked := _threads_since(before):
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {sorted(thread.name for thread in leaked)}")
        gc.collect()  # an ensemble in a reference cycle lives until then
        time.sleep(0.01)


def _threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    new = set(threading.enumerate()) - before
    return [thread for thread in new if not thread.name.startswith(LIBRARY_THREADS)]


@pytest.fixture(scope="session")
def host_config_dir() -> Path:
    """Return the folder of FusionBench's own configs."""
    from fusion_bench.constants import DEFAULT_CONFIG_PATH

    return Path(DEFAULT_CONFIG_PATH)


@pytest.fixture
def run_cli() -> RunCli:
    """Return a function that runs ``fusion_bench`` as a user does: a process in a folder of their choice."""
    return run_fusion_bench


def run_fusion_bench(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``cwd``; a failure shows all that it printed."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("fusion_bench")), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "default", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check and done.returncode != 0:
        pytest.fail(f"fusion_bench {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix of model families that passed."""
    passed = terminalreporter.stats.get("passed", [])
    rows = [str(value) for report in passed for name, value in report.user_properties if name == "conformance"]
    if rows:
        terminalreporter.write_sep("-", "model families: methods / device_map=null and two lanes")
        terminalreporter.write_line("\n".join(rows))
