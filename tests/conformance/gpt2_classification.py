"""GPT-2 text classification: members are backbones, the task pool puts each task's head on a copy of the ensemble."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import load_from_disk
from torch.nn import functional as F
from transformers import GPT2Config, GPT2ForSequenceClassification

from .family import Family, Figures, combine, scored, with_average
from .texts import LENGTH, TASKS, encoded, fit, save_all, tensors, tokenizer

MEMBERS = ("cola", "mrpc", "sst2")


def make(folder: Path) -> None:
    """Train one classifier a task, and one on both."""
    data = {name: encoded(name) for name in TASKS}
    models = {}
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        words = tokenizer()
        config = GPT2Config(
            vocab_size=len(words), n_positions=LENGTH, n_embd=24, n_layer=1, n_head=2, num_labels=2,
            pad_token_id=words.pad_token_id, bos_token_id=words.pad_token_id, eos_token_id=words.pad_token_id,
        )  # fmt: skip
        model = models[name] = GPT2ForSequenceClassification(config)
        batch = tensors(data[name if name in data else TASKS[seed % 2]])
        labels = batch.pop("label")
        fit(model, lambda: F.cross_entropy(model(**batch).logits, labels), steps=5)  # noqa: B023 (called at once)
    save_all(models, folder / "models/gpt2")
    for name in TASKS:
        data[name].save_to_disk(folder / "data" / name)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean hidden states of the members, below the head of the task."""
    models = {
        name: GPT2ForSequenceClassification.from_pretrained(folder / "models/gpt2" / name).double() for name in MEMBERS
    }
    tasks = {}
    for name in TASKS:
        batch = tensors(load_from_disk(folder / "data" / name))
        labels, mask = batch.pop("label"), batch["attention_mask"]
        hidden = combine(method, [model.transformer(**batch).last_hidden_state for model in models.values()])
        last = hidden[torch.arange(len(labels)), mask.sum(1) - 1]
        tasks[name] = scored(models[name].score(last), labels)
    return with_average(tasks)


FAMILY = Family(
    slug="gpt2_classification",
    title="GPT-2 text classification",
    modelpool="GPT2ForSequenceClassificationPool",
    taskpool="GPT2TextClassificationTaskPool",
    make=make,
    expected=expected,
    refused={"probability": "Features, such as a CLIP tower's, are no class scores"},
)
