"""How many bytes a member will take: told by the headers of its checkpoint, without reading a weight."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_ensemble_plugin.sizes import checkpoint_bytes, module_bytes


class Mixed(nn.Module):
    """Weights of several types, one of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)  # 60 bytes
        self.tied = self.first
        self.short = nn.Parameter(torch.zeros(7, dtype=torch.float16))  # 14
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))  # 16
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))  # 3


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPVisionModel, Path]:
    """A real vision tower, and the folder that it was saved to."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    model, folder = CLIPVisionModel(config), tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    return model, folder


def parameter_bytes(model: nn.Module, size: int = 4) -> int:
    """Return the bytes of the parameters alone: what a checkpoint holds."""
    return size * sum(parameter.numel() for parameter in model.parameters())


def test_a_module_counts_each_tensor_once_in_its_own_type() -> None:
    assert module_bytes(Mixed()) == 60 + 14 + 16 + 3


def test_a_module_that_will_be_cast_counts_its_floating_tensors_so() -> None:
    assert module_bytes(Mixed(), torch.float64) == 120 + 56 + 16 + 3
    assert checkpoint_bytes(Mixed(), torch.float16) == 30 + 14 + 16 + 3


@pytest.mark.parametrize("spelling", [str, Path, lambda folder: {"pretrained_model_name_or_path": str(folder)}])
def test_a_checkpoint_tells_its_bytes_however_the_pool_names_it(
    tower: tuple[CLIPVisionModel, Path], spelling: Any
) -> None:
    model, folder = tower
    assert checkpoint_bytes(spelling(folder)) == parameter_bytes(model)


def test_a_pools_config_node_is_read_too(tower: tuple[CLIPVisionModel, Path]) -> None:
    model, folder = tower
    target = "transformers.CLIPVisionModel.from_pretrained"
    node = OmegaConf.create({"_target_": target, "pretrained_model_name_or_path": str(folder)})
    assert checkpoint_bytes(node) == parameter_bytes(model)


def test_a_checkpoint_that_will_be_cast_counts_so(tower: tuple[CLIPVisionModel, Path]) -> None:
    model, folder = tower
    assert checkpoint_bytes(str(folder), torch.bfloat16) == parameter_bytes(model, 2)


def test_the_shards_of_a_checkpoint_are_summed(tower: tuple[CLIPVisionModel, Path], tmp_path: Path) -> None:
    model, _ = tower
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert checkpoint_bytes(str(tmp_path)) == parameter_bytes(model)


def test_a_repository_in_the_hubs_cache_is_found_without_the_hub(
    tower: tuple[CLIPVisionModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = tower
    repo = tmp_path / "models--someone--tower"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("abc123")
    shutil.copytree(folder, repo / "snapshots/abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint_bytes("someone/tower") == parameter_bytes(model)
    assert checkpoint_bytes("someone/else") is None


def test_integers_and_booleans_keep_their_bytes_when_cast(tmp_path: Path) -> None:
    tensors = {
        "float": torch.zeros(10),
        "bfloat": torch.zeros(10, dtype=torch.bfloat16),
        "eight": torch.zeros(10, dtype=torch.float8_e4m3fn),
        "long": torch.zeros(10, dtype=torch.int64),
        "byte": torch.zeros(10, dtype=torch.uint8),
        "bool": torch.zeros(10, dtype=torch.bool),
        "scalar": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert checkpoint_bytes(str(tmp_path)) == 40 + 20 + 10 + 80 + 10 + 10 + 4
    assert checkpoint_bytes(str(tmp_path), torch.float16) == 20 + 20 + 20 + 80 + 10 + 10 + 2


def test_no_weight_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 256 * 2**30  # more than any test machine holds; the file has a hole there
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with file.open("r+b") as sparse:
        sparse.truncate(8 + len(header) + size)
    assert checkpoint_bytes(str(tmp_path)) == size


@pytest.mark.parametrize("source", [None, 7, {}, {"pretrained_model_name_or_path": None}, "", "no such/repo/at all"])
def test_what_names_no_checkpoint_has_no_known_size(source: Any) -> None:
    assert checkpoint_bytes(source) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"no safetensors file at all"),
        ("model.safetensors", b""),
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"{}"),
        ("pytorch_model.bin", b"pickled"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_has_no_known_size(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert checkpoint_bytes(str(tmp_path)) is None
