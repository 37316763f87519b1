"""A few of MNIST's digits, as a PyPI package ships them, and models that differ a little from another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fusion_ensemble_plugin.demo import load_dataset

COUNT = 64
Model = TypeVar("Model", bound=nn.Module)


def save_mnist(folder: Path) -> None:
    """Save some test pictures of the digits."""
    load_dataset("mnist", "test").shuffle(seed=0).select(range(COUNT)).save_to_disk(folder / "data/mnist")


def disturbed(model: Model, seed: int, strength: float = 0.3) -> Model:
    """Return a copy with noise on each weight, in proportion to the weights' spread."""
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += strength * parameter.data.std() * noise
    return changed
