"""Image classifiers of Hugging Face whose pools return plain logits: ResNet, DINOv2 and ConvNeXt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from .family import Family, Figures, combine, scored, with_average
from .pictures import pixels, save_mnist, training_digits
from .texts import fit

MEMBERS = ("plain", "longer", "longest")
STEPS = (6, 8, 10)
SIDE = 28
"""Pixels."""


def convnext() -> Any:
    """Return a small ConvNeXt."""
    return ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[12, 24], depths=[1, 1], image_size=SIDE, num_labels=10)
    )


def dinov2() -> Any:
    """Return a small DINOv2."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return Dinov2ForImageClassification(Dinov2Config(**sizes, image_size=SIDE, patch_size=7, num_labels=10))


def resnet() -> Any:
    """Return a small ResNet."""
    sizes = {"embedding_size": 12, "hidden_sizes": [12, 24], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=10))


def make(slug: str, new: Callable[[], Any], processor: Any, folder: Path) -> None:
    """Train three classifiers for a few steps, each on its own digits."""
    for seed, (name, steps) in enumerate(zip(MEMBERS, STEPS)):
        torch.manual_seed(seed)
        images, labels = training_digits(seed, processor)
        model = new()
        fit(model, lambda: F.cross_entropy(model(images).logits, labels), steps, rate=1e-2)  # noqa: B023
        model.save_pretrained(folder / "models" / slug / name)
        processor.save_pretrained(folder / "models" / slug / name)
    save_mnist(folder)


@torch.no_grad()
def expected(slug: str, processor: Any, folder: Path, method: str) -> Figures:
    """Combine the members' logits."""
    data = load_from_disk(folder / "data/mnist")
    paths = [folder / "models" / slug / name for name in MEMBERS]
    images = pixels(processor, data).double()
    members = [AutoModelForImageClassification.from_pretrained(path).double() for path in paths]
    logits = combine(method, [member(images).logits for member in members])
    return with_average({"mnist": scored(logits, torch.tensor(data["label"][:]))})


def _family(slug: str, title: str, modelpool: str, new: Callable[[], Any], processor: Any) -> Family:
    return Family(
        slug=slug,
        title=title,
        modelpool=modelpool,
        taskpool="ImageClassificationTaskPool",
        make=partial(make, slug, new, processor),
        expected=partial(expected, slug, processor),
    )


SQUARE = {"height": SIDE, "width": SIDE}
BIT = BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
CONVNEXT = ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=1.0)
FAMILIES = [
    _family("resnet", "ResNet", "ResNetForImageClassificationPool", resnet, CONVNEXT),
    _family("dinov2", "DINOv2", "Dinov2ForImageClassificationPool", dinov2, BIT),
    _family("convnext", "ConvNeXt", "ConvNextForImageClassificationPool", convnext, CONVNEXT),
]
