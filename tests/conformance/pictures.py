"""A few of MNIST's digits, as a PyPI package ships them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.demo import load_dataset

COUNT = 64


def save_mnist(folder: Path) -> None:
    """Save some test pictures of the digits."""
    load_dataset("mnist", "test").shuffle(seed=0).select(range(COUNT)).save_to_disk(folder / "data/mnist")


def training_digits(seed: int, processor: Any) -> tuple[Tensor, Tensor]:
    """Return pixels, (pictures, channels, height, width), and classes; other pictures for each seed."""
    train = load_dataset("mnist", "train").shuffle(seed=1).select(range(100 * seed, 100 * seed + 100))
    return pixels(processor, train), torch.tensor(train["label"][:])


def pixels(processor: Any, data: Any) -> Tensor:
    """Return pictures as models take them."""
    found: Tensor = processor(images=data["image"][:], return_tensors="pt")["pixel_values"]
    return found
