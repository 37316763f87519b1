"""ConvNeXts with the head of a task each: the mean is one of features below the heads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification

from fusion_ensemble_plugin.demo import load_dataset

from .family import Family, Figures, combine, scored, with_average
from .image_classification import CONVNEXT, SIDE
from .pictures import pixels
from .texts import fit

CLASSES = {"digits": 10, "faces": 2, "textures": 3}
FOLDER = "models/convnext_heads"


def make(folder: Path) -> None:
    """Train one classifier a task, all from the same start."""
    torch.manual_seed(0)
    start = ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[12, 24], depths=[1, 1], image_size=SIDE)
    ).convnext
    for task, count in CLASSES.items():
        config = ConvNextConfig(**{**start.config.to_dict(), "num_labels": count})
        model = ConvNextForImageClassification(config)
        model.convnext.load_state_dict(start.state_dict())
        train = load_dataset(task, "train").shuffle(seed=0).select(range(100))
        images, labels = pixels(CONVNEXT, train), torch.tensor(train["label"][:])
        fit(model, lambda: F.cross_entropy(model(images).logits, labels), steps=10, rate=1e-2)  # noqa: B023
        model.save_pretrained(folder / FOLDER / task)
        CONVNEXT.save_pretrained(folder / FOLDER / task)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean pooled features, and the classifier of each task's own member."""
    members = {
        task: ConvNextForImageClassification.from_pretrained(folder / FOLDER / task).double() for task in CLASSES
    }
    tasks = {}
    for task in CLASSES:
        data = load_dataset(task, "test")
        images = pixels(CONVNEXT, data).double()
        features = combine(method, [member.convnext(images).pooler_output for member in members.values()])
        tasks[task] = scored(members[task].classifier(features), torch.tensor(data["label"][:]))
    return with_average(tasks)


FAMILY = Family(
    slug="convnext_heads",
    title="ConvNeXt, a head for each task",
    modelpool="ConvNextForImageClassificationPool",
    taskpool="ImageClassificationTaskPool",
    make=make,
    expected=expected,
    refused={"probability": "are no class scores"},
)
