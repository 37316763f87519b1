"""The report through FusionBench's command line on the offline benchmark, interrupted and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from matplotlib.image import imread

from fusion_ensemble_plugin.demo.store import models_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

METHOD = ("method=ensemble/ensemble_report", "method.variants=[probability_mean]", "method.subsets=1")
POOLS = ("modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4", "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4")
DROPPED = (
    "~taskpool.test_datasets.mnist",
    "~taskpool.test_datasets.digits",
    "taskpool.dataloader_kwargs.batch_size=16",
)
TASKS = ["faces", "textures"]
ENTRIES = 4 + 1 + 1 + 4 + 1 + 1


def kept(cache: Path) -> list[Path]:
    return list(cache.rglob("reports/*/*.safetensors"))


def accuracies(report: dict[str, Any]) -> dict[str, list[float]]:
    return {name: [entry[task]["accuracy"] for task in TASKS] for name, entry in report.items()}


def test_the_same_command_continues_an_interrupted_report_and_writes_it_beside_the_programs(
    run_cli: RunCli, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"  # with the trained models, and nothing of other reports
    cache.mkdir()
    (cache / models_folder().name).symlink_to(models_folder())
    env = {"FUSION_ENSEMBLE_CACHE": str(cache)}
    command = [*METHOD, *POOLS, *DROPPED]
    interrupted = subprocess.Popen(
        [str(Path(sys.executable).with_name("fusion_bench")), *command, f"path.log_dir={tmp_path / 'first'}"],
        cwd=tmp_path,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while interrupted.poll() is None and len(kept(cache)) < 2:
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    interrupted.wait(60)
    before = len(kept(cache))
    assert 2 <= before < ENTRIES
    assert not (tmp_path / "first/ensemble_report.json").exists()

    done = run_cli(*command, f"path.log_dir={tmp_path / 'out'}", cwd=tmp_path, env=env)
    assert f"{before} of {ENTRIES} models were evaluated before" in (tmp_path / "out/cli.log").read_text()
    assert done.stdout.rstrip().splitlines()[-1].startswith("written to")
    assert not kept(cache)
    program = json.loads((tmp_path / "out/program_report.json").read_text())
    report = json.loads((tmp_path / "out/ensemble_report.json").read_text())
    assert list(program) == list(report["models"])
    assert len(program) == ENTRIES
    assert accuracies(program) == accuracies({name: model["tasks"] for name, model in report["models"].items()})
    assert report["gain_over_weight_average"] is not None
    assert "Ensemble report" in done.stdout
    for name in ("accuracy_by_task", "accuracy_by_members", "agreement", *(f"reliability_{task}" for task in TASKS)):
        assert imread(tmp_path / f"out/{name}.png")[..., :3].std() > 0.05
