"""A saved ensemble as a model pool: for our methods and the host's, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import RunCli
from fusion_bench.method import SimpleAverageAlgorithm
from saved_ensembles import IMAGES, assert_same_bits, mlp, tower, two_towers
from transformers import CLIPVisionModel

from fusion_ensemble_plugin import ParallelEnsemble, SavedEnsemblePool, SimpleEnsembleAlgorithm

TASKS = "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    two_towers().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_its_members_are_loaded_by_name_when_they_are_asked_for(folder: Path) -> None:
    pool = SavedEnsemblePool(str(folder))
    assert pool.model_names == ["mnist", "svhn"]
    assert not pool.has_instance_models
    assert_same_bits(pool.load_model("svhn"), tower(1), IMAGES)
    (folder / "ensemble.json").unlink()
    with pytest.raises(FileNotFoundError):
        pool.load_model("mnist")


def test_our_method_makes_the_ensemble_that_was_saved(folder: Path) -> None:
    again = SimpleEnsembleAlgorithm(device_map=["cpu:0", "cpu:1"]).run(SavedEnsemblePool(str(folder)))
    assert again.names == ("mnist", "svhn")
    assert_same_bits(again, two_towers(), IMAGES)


def test_the_hosts_methods_take_it(folder: Path) -> None:
    merged = SimpleAverageAlgorithm(show_pbar=False).run(SavedEnsemblePool(str(folder)))
    towers = [tower(0).state_dict(), tower(1).state_dict()]
    for name, found in merged.state_dict().items():
        torch.testing.assert_close(found, (towers[0][name] + towers[1][name]) / 2)


def test_what_a_method_makes_of_it_is_saved_as_such_models_are(folder: Path, tmp_path: Path) -> None:
    pool = SavedEnsemblePool(str(folder))
    pool.save_model(tower(1), str(tmp_path / "one"))
    assert_same_bits(CLIPVisionModel.from_pretrained(tmp_path / "one"), tower(1), IMAGES)
    pool.save_model(two_towers(), str(tmp_path / "both"))
    assert SavedEnsemblePool(str(tmp_path / "both")).model_names == ["mnist", "svhn"]
    pool.save_model(mlp(0), str(tmp_path / "mlp.pt"))
    mlp(1).load_state_dict(torch.load(tmp_path / "mlp.pt", weights_only=True))


def test_it_goes_through_a_yaml_file_and_back(folder: Path, tmp_path: Path) -> None:
    SavedEnsemblePool(str(folder)).to_yaml(tmp_path / "pool.yaml")
    pool = SavedEnsemblePool.from_yaml(tmp_path / "pool.yaml")
    assert isinstance(pool, SavedEnsemblePool)
    assert_same_bits(pool.load_model("mnist"), tower(0), IMAGES)


def test_weights_without_a_class_are_refused_with_what_to_do(tmp_path: Path) -> None:
    ParallelEnsemble([mlp(0), mlp(1)], names=["a", "b"]).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"only the weights of 'a', 'b'.*from_pretrained"):
        SavedEnsemblePool(str(tmp_path / "saved"))


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no saved ensemble"):
        SavedEnsemblePool(str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run may train the benchmark
def test_what_one_command_saves_others_evaluate_and_merge(run_cli: RunCli, tmp_path: Path) -> None:
    ensemble, pool = "ensemble/simple_ensemble", ["modelpool=saved_ensemble", f"modelpool.path={tmp_path}/ensemble"]
    runs = {
        "ensemble": [f"method={ensemble}", "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4"],
        "again": [f"method={ensemble}", *pool],
        "average": ["method=simple_average", *pool],
    }
    found = {}
    for name, arguments in runs.items():
        paths = (f"merged_model_save_path={tmp_path}/{name}", f"report_save_path={tmp_path}/{name}.json")
        run_cli("fast_dev_run=true", TASKS, *arguments, *paths, cwd=tmp_path)
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["ensemble"]["mnist"]["accuracy"] > 0
    assert found["again"] == found["ensemble"]
    average = CLIPVisionModel.from_pretrained(tmp_path / "average")
    merged = SimpleAverageAlgorithm(show_pbar=False).run(SavedEnsemblePool(str(tmp_path / "again")))
    torch.testing.assert_close(average.state_dict(), merged.state_dict())
    assert found["average"]["mnist"] != found["ensemble"]["mnist"]
