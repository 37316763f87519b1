"""Processes whose ensemble has workers: they end as they would without, and a forked one starts workers of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import os, signal, threading, time
import torch
from fusion_ensemble_plugin import ParallelEnsemble

torch.set_num_threads(2)

class Member(torch.nn.Linear):
    meeting = None

    def forward(self, x):
        if self.meeting and self.meeting.wait() == 0:
            print("both run", flush=True)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.5)
        return super().forward(x)

ensemble, x = ParallelEnsemble([Member(3, 3), Member(3, 3)], ["cpu:0", "cpu:1"]), torch.ones(2, 3)
expected = ensemble(x)
"""
FORK = """
child = os.fork()
if child == 0:
    signal.alarm(30)  # its parent's workers are not there to answer
    os._exit(0 if all(torch.equal(ensemble(x), expected) for _ in range(2)) else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print("parent", torch.equal(ensemble(x), expected), flush=True)
"""
CONTROL_C = """
Member.meeting = threading.Barrier(2)
ensemble(x)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    # from Python 3.12 on, forking a process with threads is warned of; data loaders do it all the same
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_forked_process_starts_workers_of_its_own_and_both_exit() -> None:
    done = run(SCRIPT + FORK)
    assert (done.stdout, done.stderr, done.returncode) == ("child 0\nparent True\n", "", 0)


def test_control_c_while_members_run_ends_the_process_with_one_traceback() -> None:
    done = run(SCRIPT + CONTROL_C)
    assert done.stdout == "both run\n"
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
