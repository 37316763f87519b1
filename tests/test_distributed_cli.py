"""Members spread over ranks by the command line, on one machine and on two: the report is that of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, run_fusion_bench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

JOB = [
    "method=ensemble/simple_ensemble",
    "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4",
    "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4",
    "fabric.accelerator=cpu",
]
SPREAD = [*JOB, "method.member_parallel=true", "method.rank_timeout=60", "fabric.strategy=ddp"]
TASKS = ("mnist", "digits", "faces", "textures")
NETWORK = "10.213.77"


def report(folder: Path) -> dict[str, Any]:
    """Return the task pool's report, which rank zero alone writes; the program's own is written by each."""
    (path,) = folder.rglob("report.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of one process with all members."""
    folder = tmp_path_factory.mktemp("one")
    run_fusion_bench(*JOB, cwd=folder)
    return report(folder)


def check_same(found: dict[str, Any], one: dict[str, Any]) -> None:
    for task in TASKS:
        assert found[task]["accuracy"] == pytest.approx(one[task]["accuracy"], abs=1e-6)
    assert found["model_info"] == one["model_info"]


def test_two_ranks_write_one_report_with_the_accuracies_of_one_process(
    run_cli: RunCli, tmp_path: Path, one: dict[str, Any]
) -> None:
    run_cli(*SPREAD, "fabric.devices=2", cwd=tmp_path)
    check_same(report(tmp_path), one)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Return two network namespaces with a cable between them: to the processes inside, two machines."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    names = [f"fep-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    try:
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", "cable")
            for device in ("cable", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def test_two_machines_run_one_evaluation(machines: list[str], tmp_path: Path, one: dict[str, Any]) -> None:
    programs = Path(sys.executable).parent
    running = []
    for number, name in enumerate(machines):
        folder = tmp_path / name
        folder.mkdir()
        where = ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1"]
        meeting = [f"--master-addr={NETWORK}.1", "--master-port=29511"]
        job = ["--no-python", str(programs / "fusion_bench"), *SPREAD, "+fabric.num_nodes=2", "fabric.devices=1"]
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, str(programs / "torchrun"), *where, *meeting, *job],
                cwd=folder,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "cable"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    check_same(report(tmp_path / machines[0]), one)
    assert list((tmp_path / machines[1]).rglob("report.json")) == []
