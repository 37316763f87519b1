"""OpenCLIP's image encoders, each task's head on top: the mean is one of features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from torch import Tensor
from torch.nn import functional as F

from .family import Family, Figures, combine, scored, with_average
from .pictures import pixels, save_mnist, training_digits
from .texts import fit

MEMBERS = ("mnist", "svhn", "gtsrb")
FOLDER = "models/openclip"


def make(folder: Path) -> None:
    """Save encoders' weights, and the head that they were trained below."""
    vision, processor = _stand_in()
    (folder / FOLDER).mkdir(parents=True)
    torch.manual_seed(0)
    start, weight = vision(), torch.randn(10, 24)
    for seed, name in enumerate(MEMBERS):
        images, labels = training_digits(seed, processor)
        model = vision()
        model.load_state_dict(start.state_dict())
        fit(model, partial(_loss, model, weight, images, labels), steps=8 + seed, rate=1e-2)
        torch.save({f"model.{key}": value for key, value in model.state_dict().items()}, folder / FOLDER / f"{name}.pt")
    torch.save(weight, folder / FOLDER / "head.pt")
    save_mnist(folder)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean features, made as long as one, and the head."""
    vision, processor = _stand_in()
    data = load_from_disk(folder / "data/mnist")
    images = pixels(processor, data).double()
    features = []
    for name in MEMBERS:
        model = vision().double()
        state = torch.load(folder / FOLDER / f"{name}.pt", weights_only=True)
        model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
        features.append(model.eval().encode_image(images))
    weight = torch.load(folder / FOLDER / "head.pt", weights_only=True).double()
    logits = F.normalize(combine(method, features), dim=-1) @ weight.T
    return with_average({"mnist": scored(logits, torch.tensor(data["label"][:]))})


def _loss(model: Any, weight: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(model.encode_image(images), dim=-1) @ weight.T, labels)


def _stand_in() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Return what makes a model, and a processor of many pictures."""
    from .stand_in.open_clip import Vision, preprocess

    def processor(images: list[Any], return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([preprocess(image) for image in images])}

    return Vision, processor


FAMILY = Family(
    slug="openclip",
    title="OpenCLIP",
    modelpool="OpenCLIPVisionModelPool",
    taskpool="OpenCLIPVisionModelTaskPool",
    make=make,
    expected=expected,
    meaningless={"probability": "features are no class scores"},
    path=str(Path(__file__).parent / "stand_in"),
)
