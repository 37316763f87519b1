"""NYUv2: members are encoders of one picture, and each task's decoder reads the mean of their features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .family import Family, Figures, combine, flat

TASKS = ("segmentation", "depth", "normal")
CLASSES = 13
PICTURE, TARGET = (32, 48), (288, 384)
"""Height and width in pixels: the model scales what it predicts up to the host's fixed size."""
WEIGHTS_FILE = "hub/checkpoints/resnet50-19c8e357.pth"


def make(folder: Path) -> None:
    """Save ImageNet weights where torch looks for them, a checkpoint a task, and two pictures with targets."""
    from fusion_bench.models.nyuv2 import resnet
    from fusion_bench.models.nyuv2.aspp import DeepLabHead

    torch.manual_seed(0)
    backbone = resnet.resnet50(pretrained=False)
    weights = folder / WEIGHTS_FILE
    weights.parent.mkdir(parents=True)
    torch.save(_halved(backbone.state_dict()), weights)
    (folder / "checkpoints").mkdir()
    for seed, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(seed)
        scales = torch.randn(2048, generator=generator)  # of the features
        head = DeepLabHead(2048, {"segmentation": CLASSES, "depth": 1, "normal": 3}[task])
        decoder = {f"decoders.{task}.{name}": value for name, value in head.state_dict().items()}
        state = _halved({"encoder.layer4.2.bn3.weight": scales, **decoder})
        torch.save(state, folder / "checkpoints" / f"{task}.pt")
    save_pictures(folder / "data/nyuv2")


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Halve the room that weights take."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def save_pictures(folder: Path) -> None:
    """Save two photographs, and as targets what of them is bright and which way their brightness falls."""
    from skimage import data
    from skimage.transform import resize

    for part in ("train", "val"):
        for kind in ("image", "label", "depth", "normal"):
            (folder / part / kind).mkdir(parents=True)
    for index, photograph in enumerate([data.astronaut(), data.chelsea()]):
        small, large = resize(photograph, PICTURE), resize(photograph, TARGET).mean(-1)
        slopes = np.stack([*np.gradient(large), np.ones(TARGET)], -1)
        targets = {
            "image": small,
            "label": np.floor(large * (CLASSES - 1)),
            "depth": large[..., None] + 0.1,
            "normal": slopes / np.linalg.norm(slopes, axis=-1, keepdims=True),
        }
        for kind, values in targets.items():
            np.save(folder / "val" / kind / f"{index}.npy", values)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean features, each task's decoder, and its loss written out."""
    from fusion_bench.modelpool.nyuv2_modelpool import NYUv2ModelPool

    with patch.dict(os.environ, TORCH_HOME=str(folder)):
        pool = NYUv2ModelPool({task: _config(folder, task) for task in TASKS})
        models = {task: pool.load_model(task, encoder_only=False).double().eval() for task in TASKS}
    read = {kind: _read(folder / "data/nyuv2/val" / kind) for kind in ("image", "label", "depth", "normal")}
    features = combine(method, [model.encoder(read["image"].movedim(-1, 1)) for model in models.values()])
    outputs = {task: _upscaled(models[task].decoders[task](features)) for task in TASKS}
    normal = F.normalize(outputs["normal"], dim=1) * read["normal"].movedim(-1, 1)
    losses = {
        "segmentation": F.cross_entropy(outputs["segmentation"], read["label"].long()),
        "depth": (outputs["depth"] - read["depth"].movedim(-1, 1)).abs().mean(),
        "normal": 1 - normal.sum(1).mean(),
    }
    figures = {f"val/{task}_loss": loss.item() for task, loss in losses.items()}
    return {**figures, "val/loss": sum(figures.values())}


def _config(folder: Path, task: str) -> dict[str, Any]:
    return {"encoder": "resnet50", "decoders": [task], "ckpt_path": str(folder / "checkpoints" / f"{task}.pt")}


def _read(folder: Path) -> Tensor:
    """Return the arrays as the host does, rounded to float32, but with float64 from there on."""
    arrays = [np.load(folder / f"{index}.npy") for index in range(2)]
    return torch.from_numpy(np.stack(arrays)).float().double()


def _upscaled(predicted: Tensor) -> Tensor:
    return F.interpolate(predicted, TARGET, mode="bilinear", align_corners=True)


def losses_of(report: Any) -> Figures:
    """Return the losses; the other metrics are not defined where a class does not occur."""
    return {name: value for name, value in flat(report).items() if name.endswith("loss")}


FAMILY = Family(
    slug="nyuv2",
    title="NYUv2",
    modelpool="NYUv2ModelPool",
    taskpool="NYUv2TaskPool",
    make=make,
    expected=expected,
    figures=losses_of,
    meaningless={"probability": "features are no class scores"},
    environment={"TORCH_HOME": "."},  # where the host's pool finds the weights that it would download
)
