"""What a method plans is told as a table when a run starts: each member's place, bytes and share of all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool
from safetensors.torch import save_file
from torch import nn

from fusion_ensemble_plugin import SimpleEnsembleAlgorithm

TITLE = "members and their places:"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CPUs alone."""
    monkeypatch.setattr("fusion_ensemble_plugin.placement.present_devices", lambda: {"cpu": -1, "meta": -1})


class Pool(BaseModelPool):
    """Notes what was logged before the first load."""

    def __init__(self, models: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
        super().__init__(dict.fromkeys(models))
        self._models = models
        self.caplog = caplog
        self.logged: list[str] = []

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        self.logged = self.logged or self.caplog.messages[:]
        return nn.Identity()


def plan_of(models: dict[str, Any], caplog: pytest.LogCaptureFixture, **options: Any) -> list[list[str]]:
    """Return the rows of the table that was logged before the first load, without its title and header."""
    pool = Pool(models, caplog)
    with caplog.at_level(logging.INFO, logger="fusion_ensemble_plugin"):
        SimpleEnsembleAlgorithm(**options).run(pool)
    tables = [message for message in pool.logged if message.startswith(TITLE)]
    assert tables == [message for message in caplog.messages if message.startswith(TITLE)]
    return [row.split() for table in tables for row in table.splitlines()[2:]]


def checkpoint(folder: Path, rows: int) -> str:
    """Save so many KiB of weights."""
    folder.mkdir()
    save_file({"weight": torch.zeros(rows, 256)}, folder / "model.safetensors")
    return str(folder)


def test_the_plan_is_logged_before_any_load_with_the_bytes_that_checkpoints_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = {"svhn": checkpoint(tmp_path / "svhn", 1), "a.b": {"pretrained_model_name_or_path": tmp_path / "b"}}
    checkpoint(tmp_path / "b", 3)
    assert plan_of(models, caplog, device_map="auto", lanes=2) == [
        ["svhn", "cpu:1", "1.0", "KiB", "25.0", "%"],
        ["a.b", "cpu:0", "3.0", "KiB", "75.0", "%"],
    ]


def test_the_bytes_are_those_of_the_dtype_that_members_are_cast_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = {"svhn": checkpoint(tmp_path / "svhn", 4)}
    assert plan_of(models, caplog, device_map="cpu", dtype="float16") == [["svhn", "cpu:0", "2.0", "KiB", "100.0", "%"]]


def test_bytes_that_nobody_tells_before_loading_are_not_made_up(caplog: pytest.LogCaptureFixture) -> None:
    assert plan_of({"svhn": None, "dtd": None}, caplog, device_map=["cpu:1", "meta"]) == [
        ["svhn", "cpu:1", "?", "?"],
        ["dtd", "meta", "?", "?"],
    ]


def test_the_plan_says_which_members_rest_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = {name: checkpoint(tmp_path / name, 1) for name in "abc"}
    rows = plan_of(models, caplog, device_map="cpu", max_memory={"cpu": "2KiB"}, offload="disk")
    assert [(row[0], row[-1]) for row in rows] == [("a", "%"), ("b", "offloaded"), ("c", "offloaded")]


def test_without_a_map_there_is_no_plan(caplog: pytest.LogCaptureFixture) -> None:
    assert plan_of({"svhn": None}, caplog) == []
