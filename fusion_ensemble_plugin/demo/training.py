"""How the benchmark's models are made: one tiny CLIP, then a vision tower fine-tuned from it for each task.

As in the original recipe of the eight-task benchmark the text side is frozen, and shared, while the towers are
fine-tuned: a picture's classes are scored by the cosine between its embedding and that of each class's prompt. A text
side fresh from its random weights gives all prompts nearly the same embedding, so it is first trained to tell a task's
prompts apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from itertools import cycle, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPProcessor

from fusion_ensemble_plugin.demo.data import TASKS, load_dataset
from fusion_ensemble_plugin.demo.models import new_clip, new_processor
from fusion_ensemble_plugin.demo.tasks import register_tasks

if TYPE_CHECKING:
    from typing_extensions import Never

PRETRAINED = "_pretrained_"
"""The name of the model that the towers are fine-tuned from."""
BATCH = 64
TEXT_STEPS, TEXT_RATE, TEXT_SCALE = 100, 1e-3, 10
PRETRAINING_STEPS, PRETRAINING_RATE = 160, 2e-3
FINE_TUNING_STEPS, FINE_TUNING_RATE = 320, 1e-3


class Task(NamedTuple):
    """A task's training data.

    Attributes:
        pixels: Pictures, ``(pictures, 3, 32, 32)``.
        labels: Their classes, ``(pictures,)``.
        prompts: For each template, the tokens of one prompt a class.
    """

    pixels: Tensor
    labels: Tensor
    prompts: list[dict[str, Tensor]]


def train(folder: Path, seed: int) -> None:
    """Train all models and save each in a folder of its own, named as the task or `PRETRAINED`.

    Takes about half a minute on two cores. The process's random state is left as it was.

    Args:
        folder: Where to, an empty folder.
        seed: Fixes weights and batches.
    """
    register_tasks()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        processor, clip = new_processor(), new_clip()
        tasks = {name: _task(name, processor) for name in TASKS}
        steps = TEXT_STEPS + PRETRAINING_STEPS + FINE_TUNING_STEPS * len(tasks)
        with tqdm(total=steps, desc="training the offline benchmark", unit="step") as progress:
            _teach_prompts(clip, list(tasks.values()), progress)
            _pretrain(clip, list(tasks.values()), progress)
            _save(clip, folder / PRETRAINED, processor)
            for name, task in tasks.items():
                progress.set_description(f"fine-tuning on {name}")
                tower = deepcopy(clip)
                _fine_tune(tower, task, progress)
                _save(tower, folder / name)


def _task(name: str, processor: CLIPProcessor) -> Task:
    dataset = load_dataset(name, "train")
    classnames, templates = get_classnames_and_templates(name)
    tokenize = partial(processor, return_tensors="pt", padding=True)
    return Task(
        pixels=processor(images=list(dataset["image"]), return_tensors="pt")["pixel_values"],
        labels=torch.tensor(dataset["label"]),
        prompts=[dict(tokenize(text=[template(c) for c in classnames])) for template in templates],
    )


def _teach_prompts(clip: CLIPModel, tasks: list[Task], progress: tqdm[Never]) -> None:
    """Train the text side until each class's prompt is nearer to itself than to the task's others."""

    def loss() -> Tensor:
        embeddings = [_class_embeddings(clip, task) for task in tasks]
        losses = [F.cross_entropy(TEXT_SCALE * e @ e.T, torch.arange(len(e))) for e in embeddings]
        return torch.stack(losses).sum()

    _descend([clip.text_model, clip.text_projection], repeat(loss), TEXT_STEPS, TEXT_RATE, progress)


def _pretrain(clip: CLIPModel, tasks: list[Task], progress: tqdm[Never]) -> None:
    """Train the vision side on all tasks in turn, for too short a time to be good at each."""
    losses = map(next, cycle([_losses(clip, task) for task in tasks]))
    _descend([clip.vision_model, clip.visual_projection], losses, PRETRAINING_STEPS, PRETRAINING_RATE, progress)


def _fine_tune(clip: CLIPModel, task: Task, progress: tqdm[Never]) -> None:
    """Train the vision tower alone on one task."""
    _descend([clip.vision_model], _losses(clip, task), FINE_TUNING_STEPS, FINE_TUNING_RATE, progress)


def _losses(clip: CLIPModel, task: Task) -> Iterator[Callable[[], Tensor]]:
    """Yield, without end, the loss of each batch of a task: the cross-entropy of the classes' scaled cosines."""
    with torch.no_grad():
        classes = _class_embeddings(clip, task)

    def loss(chosen: Tensor) -> Tensor:
        pooled = clip.vision_model(task.pixels[chosen]).pooler_output
        images = F.normalize(clip.visual_projection(pooled), dim=-1)
        return F.cross_entropy(clip.logit_scale.exp() * images @ classes.T, task.labels[chosen])

    while True:
        for chosen in torch.split(torch.randperm(len(task.labels)), BATCH):
            yield partial(loss, chosen)


def _class_embeddings(clip: CLIPModel, task: Task) -> Tensor:
    """Return the classes' text embeddings, ``(classes, embedding)``, each of length 1: the mean over the templates."""
    pooled = [clip.text_model(**tokens).pooler_output for tokens in task.prompts]
    each = [F.normalize(clip.text_projection(output), dim=-1) for output in pooled]
    return F.normalize(torch.stack(each).mean(dim=0), dim=-1)


def _descend(
    parts: list[nn.Module],
    losses: Iterable[Callable[[], Tensor]],
    steps: int,
    rate: float,
    progress: tqdm[Never],
) -> None:
    """Take steps with AdamW, one on each loss; the rate rises over the first tenth and falls to nothing as a cosine."""
    weights = [weight for part in parts for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.05)
    warm = max(1, steps // 10)
    for step, loss in enumerate(islice(losses, steps)):
        share = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * share
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()
        progress.update()


def _save(clip: CLIPModel, folder: Path, *others: CLIPProcessor) -> None:
    """Save a whole CLIP model, as hubs keep it; FusionBench takes the vision tower out of it."""
    for part in (clip, *others):
        part.save_pretrained(folder)
