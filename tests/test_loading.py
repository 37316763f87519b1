"""Members are loaded one by one: each is cast and in its place before the next one starts."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool, CLIPVisionModelPool
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.loading import MemberLoader
from fusion_ensemble_plugin.members import Members
from fusion_ensemble_plugin.placement import Placement

LANES = Placement(("cpu:0", "cpu:1", "cpu:0"))


class Pool(BaseModelPool):
    """Makes its members on demand, and looks at those before whenever it is asked for one."""

    def __init__(self, names: list[str], broken: str = "") -> None:
        super().__init__({name: {"_target_": "torch.nn.Identity"} for name in names})
        self.broken = broken
        self.loaded: list[Any] = []
        self.seen: list[list[tuple[str, torch.dtype]]] = []

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        self.seen.append([(str(member().weight.device), member().weight.dtype) for member in self.loaded])
        if model_name_or_config == self.broken:
            raise OSError("the disk is on fire")
        model = nn.Linear(2, 2)
        self.loaded.append(weakref.ref(model))
        return model


def tower(folder: Path) -> str:
    """Save a tiny vision tower."""
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    CLIPVisionModel(config).save_pretrained(folder)
    return str(folder)


def test_each_member_is_cast_and_in_its_place_before_the_next_is_loaded() -> None:
    pool = Pool(["a", "b", "c"])
    SimpleEnsembleAlgorithm(device_map=["meta", "cpu:0", "meta"], dtype="bfloat16").run(pool)
    meta, cpu = ("meta", torch.bfloat16), ("cpu", torch.bfloat16)
    assert pool.seen == [[], [meta], [meta, cpu]]


def test_a_hosts_pool_of_checkpoints_is_loaded_in_its_order_without_special_models(tmp_path: Path) -> None:
    entries = {"_pretrained_": "no such folder", "svhn": tower(tmp_path / "1"), "mnist": tower(tmp_path / "2")}
    pool = CLIPVisionModelPool(OmegaConf.create(entries))
    loader = MemberLoader(pool, torch.float16)
    assert (loader.names, len(loader)) == (["svhn", "mnist"], 2)
    assert [model.dtype for model in loader] == [torch.float16] * 2
    sizes = [sum(2 * parameter.numel() for parameter in model.parameters()) for model in loader]
    assert loader.sizes() == sizes


@pytest.mark.parametrize(
    ("pool", "names"),
    [
        ([nn.Identity(), nn.ReLU()], ["0", "1"]),
        (nn.ModuleList([nn.Identity(), nn.ReLU()]), ["0", "1"]),
        ({"a.b": nn.Identity(), "keys": nn.ReLU()}, ["a.b", "keys"]),
        (BaseModelPool([nn.Identity(), nn.ReLU()]), ["0", "1"]),
    ],
)
def test_lists_and_mappings_of_modules_are_pools_too(pool: Any, names: list[str]) -> None:
    loader = MemberLoader(pool)
    assert loader.names == names
    assert [type(model) for model in loader] == [nn.Identity, nn.ReLU]


def test_modules_are_taken_not_copied() -> None:
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert list(SimpleEnsembleAlgorithm(device_map="cpu").run(models).model_list) == models


def test_sizes_that_no_header_tells_are_those_of_one_loaded_member_which_is_not_loaded_again() -> None:
    pool = Pool(["a", "b", "c"])
    loader = MemberLoader(pool, torch.float16)
    assert loader.sizes() is None
    assert pool.loaded == []
    assert loader.sizes(exact=True) == [12, 12, 12]
    assert len(list(loader)) == len(pool.loaded) == 3


def test_progress_is_shown_with_names(capsys: pytest.CaptureFixture[str]) -> None:
    list(MemberLoader({"a.b": nn.Identity()}))
    assert "loading a.b" in capsys.readouterr().err


@pytest.mark.parametrize("empty", [[], {}, BaseModelPool({"_pretrained_": {"_target_": "torch.nn.Identity"}})])
def test_an_empty_pool_is_told(empty: Any) -> None:
    with pytest.raises(ValueError, match="the model pool has no members"):
        SimpleEnsembleAlgorithm().run(empty)


@pytest.mark.parametrize("pool", [None, 7, nn.Linear(1, 1)])
def test_what_is_no_pool_is_told(pool: Any) -> None:
    with pytest.raises(TypeError, match=f"a model pool or a list of modules is needed, not {type(pool).__name__}"):
        SimpleEnsembleAlgorithm().run(pool)


def test_what_is_no_module_is_told_with_its_name() -> None:
    with pytest.raises(TypeError, match="the pool returned str for 'b', not a torch module"):
        SimpleEnsembleAlgorithm().run({"a": nn.Identity(), "b": "weights.pt"})


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1", "cpu:0"]])
def test_a_member_that_fails_to_load_is_named_and_the_others_are_freed(
    device_map: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(["a", "b", "c"], broken="c")
    with pytest.raises(OSError, match="the disk is on fire") as error:
        SimpleEnsembleAlgorithm(device_map=device_map).run(pool)
    assert "while loading ensemble member 'c' (index 2)" in getattr(error.value, "__notes__", [])
    assert "ensemble member 'c' could not be loaded" in caplog.text
    gc.collect()  # the error, which a notebook keeps, is still alive here
    assert [member() for member in pool.loaded] == [None, None]


def test_offloaded_members_are_freed_too_when_another_fails_to_load() -> None:
    pool = Pool(["a", "b", "c"], broken="c")
    with pytest.raises(OSError, match="fire") as error:
        SimpleEnsembleAlgorithm(device_map="cpu", max_memory={"cpu": 24}, offload="disk").run(pool)
    assert error.value is not None
    gc.collect()
    assert [member() for member in pool.loaded] == [None, None]


def test_a_broken_checkpoint_is_told_with_the_members_name(tmp_path: Path) -> None:
    good, bad = tower(tmp_path / "good"), tower(tmp_path / "bad")
    (tmp_path / "bad/model.safetensors").write_bytes(b"no weights")
    pool = CLIPVisionModelPool(OmegaConf.create({"mnist": good, "svhn": bad}))
    with pytest.raises(SafetensorError) as error:
        SimpleEnsembleAlgorithm(device_map="auto", max_memory={"cpu": "1GiB"}).run(pool)
    assert "while loading ensemble member 'svhn' (index 1)" in getattr(error.value, "__notes__", [])


def test_an_ensemble_takes_members_from_a_loader_one_by_one() -> None:
    pool = Pool(["a", "b", "c"])
    ensemble = ParallelEnsemble(MemberLoader(pool), Placement(("meta", "meta", "cpu:0")))
    assert [len(seen) for seen in pool.seen] == [0, 1, 2]
    assert isinstance(ensemble.model_list, Members)


def grown(what: str, folder: Path) -> float:
    """Return by how many members the memory of a process grew at most."""
    script = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run([sys.executable, script, what, folder], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_loading_to_an_accelerator_takes_the_hosts_memory_of_one_member(tmp_path: Path) -> None:
    assert grown("one_by_one", tmp_path) <= 1.2


@pytest.mark.slow
def test_loading_in_half_precision_takes_half_a_member_more(tmp_path: Path) -> None:
    assert grown("cast", tmp_path) <= 1.7


@pytest.mark.slow
def test_loading_all_members_before_the_move_would_take_the_memory_of_all(tmp_path: Path) -> None:
    assert grown("all_at_once", tmp_path) >= 5.9
