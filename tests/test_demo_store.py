"""The offline benchmark's models on disk: made once, whole or not at all, and by one process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from fusion_ensemble_plugin.demo import TASKS, data, model_folder, store, training

pytestmark = pytest.mark.slow

NAMES = ("_pretrained_", *TASKS)
SHORT = """
from fusion_ensemble_plugin.demo import store, training
training.TEXT_STEPS = training.PRETRAINING_STEPS = training.FINE_TUNING_STEPS = 4
"""


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Train for few steps, from the small data sets' pictures only, into a folder of the test's own."""
    for steps in ("TEXT_STEPS", "PRETRAINING_STEPS", "FINE_TUNING_STEPS"):
        monkeypatch.setattr(training, steps, 4)
    monkeypatch.setitem(data._SOURCES, "mnist", data._SOURCES["digits"])  # reading all of mnist takes seconds
    monkeypatch.setenv(store.CACHE_VARIABLE, str(tmp_path / "cache"))
    for cached in (store.models_folder, data.pictures):
        cached.cache_clear()
    yield
    for cached in (store.models_folder, data.pictures):
        cached.cache_clear()


def kept(tmp_path: Path) -> Path:
    """Return the one folder of models in the cache folder."""
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    return folder


def test_the_models_are_trained_once_and_kept_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = {name: model_folder(name) for name in NAMES}
    assert "training the offline benchmark" in capfd.readouterr().err
    store.models_folder.cache_clear()  # as in another process
    assert {name: model_folder(name) for name in NAMES} == first
    assert "training" not in capfd.readouterr().err
    assert {path.name for path in kept(tmp_path).iterdir()} == set(NAMES)


def test_training_is_seeded_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for folder in ("first", "second"):
        training.train(tmp_path / folder, seed=1)
    assert torch.equal(torch.rand(3), expected)
    first, second = (CLIPModel.from_pretrained(tmp_path / f / "faces").state_dict() for f in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_towers_share_the_text_side_and_the_projection_of_the_pretrained_model() -> None:
    pretrained, tower = (CLIPModel.from_pretrained(model_folder(n)).state_dict() for n in ("_pretrained_", "digits"))
    changed = {key.split(".")[0] for key in pretrained if not torch.equal(pretrained[key], tower[key])}
    assert changed == {"vision_model"}


@pytest.mark.parametrize("damage", ["truncated", "missing", "no configuration"])
def test_a_damaged_folder_is_made_anew_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = Path(model_folder("faces")) / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    else:
        (weights.parent / "config.json").write_text("{")
    store.models_folder.cache_clear()
    CLIPModel.from_pretrained(model_folder("faces"))
    assert "are damaged (faces: " in caplog.text
    assert [path.name for path in kept(tmp_path).parent.iterdir() if path.is_dir()] == [kept(tmp_path).name]


def test_without_a_usable_cache_folder_the_models_are_trained_for_this_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(store.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    CLIPModel.from_pretrained(model_folder("faces"))
    assert "can't be used" in caplog.text
    assert "for this process only" in caplog.text


def test_an_interrupted_training_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_fine_tune", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model_folder("faces")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_a_second_process_waits_for_the_first_to_train(tmp_path: Path) -> None:
    code = f"{SHORT}\nprint(store.models_folder())"
    begin = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", code], env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = begin()
    while not list((tmp_path / "cache").glob("*.lock")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    outputs = [process.communicate(timeout=200) for process in (first, begin())]
    assert outputs[0][0] == outputs[1][0] != ""
    assert ["training the offline benchmark" in error for _, error in outputs] == [True, False]


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no model 'svhn' .*: there are _pretrained_, mnist, digits, faces, textures"):
        model_folder("svhn")
