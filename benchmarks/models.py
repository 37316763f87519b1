"""The members that are measured: made from sizes and a seed, so that no model hub is needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

SMALL_VIT = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
TINY_VIT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}


class Sleeper(nn.Module):
    """A member that takes its time and no core."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        """Sleep, and return the input."""
        time.sleep(self.seconds)
        return x


class Filler(nn.Module):
    """A member whose one allocation is its output, ``(elements,)``."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements

    def forward(self, x: Tensor) -> Tensor:
        """Return a large tensor."""
        return torch.full((self.elements,), 1.0, device=x.device)


def vision_tower(seed: int, **sizes: Any) -> Any:
    """Make a CLIP vision tower; without sizes it has the shape of ViT-B/32."""
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()


def small_vit(seed: int) -> Any:
    """Make a tower of 2.7 million parameters for images of 64 x 64."""
    return vision_tower(seed, image_size=64, patch_size=8, **SMALL_VIT)


def tiny_vit(seed: int) -> Any:
    """Make a tower whose weights stay in a core's cache, for images of 64 x 64."""
    return vision_tower(seed, image_size=64, patch_size=8, **TINY_VIT)


def mlp(seed: int, width: int = 1024, hidden: int = 4096) -> nn.Sequential:
    """Make two linear layers with a ReLU between them."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)).eval()


def images(batch: int, size: int) -> Tensor:
    """Make random images, ``(batch, 3, size, size)``."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(batch: int, width: int) -> Tensor:
    """Make random features, ``(batch, width)``."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(0))


def spread(members: Sequence[nn.Module], lanes: int) -> list[str]:
    """Deal members out to CPU lanes: a device map."""
    return [f"cpu:{index % lanes}" for index in range(len(members))]
