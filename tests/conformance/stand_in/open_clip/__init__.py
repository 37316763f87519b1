"""Stands for the package open_clip, which needs torchvision: that has no build that loads beside a CPU build of torch.

FusionBench takes one function from it, which makes a model and its preprocessing. All else is FusionBench's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE, PATCH, WIDTH = 28, 7, 24


class Vision(nn.Module):
    """A small vision transformer that encodes pictures, (pictures, 3, SIDE, SIDE), as features, (pictures, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.1 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode pictures."""
        features: Tensor = self.layers(self.patches(images).flatten(2).mT + self.places).mean(1)
        return features


def preprocess(image: Any) -> Tensor:
    """Turn a picture into a tensor, (3, SIDE, SIDE)."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).movedim(-1, 0)


def create_model_and_transforms(
    name: str, **options: Any
) -> tuple[Vision, Callable[..., Tensor], Callable[..., Tensor]]:
    """Make a model and its preprocessing for training and for evaluation."""
    del name, options
    return Vision(), preprocess, preprocess
