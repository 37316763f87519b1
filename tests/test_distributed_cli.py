"""Members spread over two ranks from the command line: the report is that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RunCli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

JOB = [
    "method=ensemble/simple_ensemble",
    "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4",
    "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4",
    "fabric.accelerator=cpu",
]
SPREAD = ["method.member_parallel=true", "fabric.devices=2", "fabric.strategy=ddp"]
TASKS = ("mnist", "digits", "faces", "textures")


def test_two_ranks_write_one_report_with_the_accuracies_of_one_process(run_cli: RunCli, tmp_path: Path) -> None:
    found = {}
    for name, options in {"one": [], "two": SPREAD}.items():
        folder = tmp_path / name
        folder.mkdir()
        run_cli(*JOB, *options, cwd=folder)
        (report,) = folder.rglob("report.json")  # of rank zero; the program's own report is written by each
        found[name] = json.loads(report.read_text())
    for task in TASKS:
        assert found["two"][task]["accuracy"] == pytest.approx(found["one"][task]["accuracy"], abs=1e-6)
    assert found["two"]["model_info"] == found["one"]["model_info"]
