"""CLIP vision towers, scored by the task pool against prompts: the mean is one of pooled features."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from datasets import load_from_disk
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from fusion_ensemble_plugin.demo.models import new_clip, new_processor

from .family import Family, Figures, combine, scored, with_average
from .pictures import save_mnist, training_digits
from .texts import fit

MEMBERS = ("mnist", "svhn", "gtsrb")
FOLDER = "models/clip"


def make(folder: Path) -> None:
    """Save a CLIP model, and towers trained a little further, each on its own digits."""
    torch.manual_seed(0)
    clip, processor = new_clip(), new_processor()
    clip.save_pretrained(folder / FOLDER / "_pretrained_")
    processor.save_pretrained(folder / FOLDER / "_pretrained_")
    with torch.no_grad():
        prompts = _prompts(clip, processor)
    for seed, name in enumerate(MEMBERS):
        images, labels = training_digits(seed, processor.image_processor)
        tuned = copy.deepcopy(clip)
        fit(
            tuned.vision_model,
            lambda: F.cross_entropy(_logits(tuned, tuned.vision_model(images).pooler_output, prompts), labels),  # noqa: B023
            steps=6 + seed,
            rate=1e-3,
        )
        tuned.save_pretrained(folder / FOLDER / name)
    save_mnist(folder)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean pooled features for plain means, the members' own logits for means of probabilities."""
    path = folder / FOLDER / "_pretrained_"
    clip, processor = CLIPModel.from_pretrained(path).double(), CLIPProcessor.from_pretrained(path)
    data = load_from_disk(folder / "data/mnist")
    images = processor(images=data["image"][:], return_tensors="pt")["pixel_values"].double()
    towers = [CLIPModel.from_pretrained(folder / FOLDER / name).double().vision_model for name in MEMBERS]
    pooled = [tower(images).pooler_output for tower in towers]
    prompts = _prompts(clip, processor)
    if method == "probability":
        logits = combine(method, [_logits(clip, each, prompts) for each in pooled])
    else:
        logits = _logits(clip, combine(method, pooled), prompts)
    return with_average({"mnist": scored(logits, torch.tensor(data["label"][:]))})


def _prompts(clip: CLIPModel, processor: CLIPProcessor) -> Tensor:
    """Return each class's direction, (classes, features)."""
    classes, templates = get_classnames_and_templates("mnist")
    texts = processor(text=[templates[0](name) for name in classes], return_tensors="pt", padding=True)
    features = clip.text_projection(clip.text_model(**texts).pooler_output)
    return features / features.norm(dim=-1, keepdim=True)


def _logits(clip: CLIPModel, pooled: Tensor, prompts: Tensor) -> Tensor:
    features = clip.visual_projection(pooled)
    return clip.logit_scale.exp() * (features / features.norm(dim=-1, keepdim=True)) @ prompts.T


FAMILY = Family(
    slug="clip_vision",
    title="CLIP",
    modelpool="CLIPVisionModelPool",
    taskpool="CLIPVisionModelTaskPool",
    make=make,
    expected=expected,
)
