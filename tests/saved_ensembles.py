"""Tiny models for the tests of saving, and whether two ensembles answer bit for bit the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.tree import flatten

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


def tower(seed: int, **options: Any) -> CLIPVisionModel:
    """Return a CLIP vision tower for 16 x 16 images."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **{**sizes, **options})).eval()


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def two_towers(**options: Any) -> ParallelEnsemble:
    return ParallelEnsemble([tower(0), tower(1)], names=["mnist", "svhn"], **options)


@torch.no_grad()
def tensors(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Return the tensors of what a model answers."""
    return [leaf for leaf in flatten(model(*args, **kwargs))[0] if isinstance(leaf, Tensor)]


def assert_same_bits(left: nn.Module, right: nn.Module, *args: Any, **kwargs: Any) -> None:
    ours, theirs = tensors(left, *args, **kwargs), tensors(right, *args, **kwargs)
    assert ours
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
