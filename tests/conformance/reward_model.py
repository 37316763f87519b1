"""Reward models: sequence classifiers with one output, compared on pairs of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForSequenceClassification

from .family import Family, Figures, combine, flat
from .texts import LENGTH, fit, save_all, tokenizer, zen

MEMBERS = ("helpful", "harmless", "honest")
FOLDER = "models/reward"


def pairs() -> Dataset:
    """Return aphorisms, each beside itself with its words turned round, as the host tokenizes preferences."""
    sides = {"chosen": zen(), "rejected": [" ".join(reversed(line.split())) for line in zen()]}
    made = {side: tokenizer()(texts) for side, texts in sides.items()}
    columns = ("input_ids", "attention_mask")
    return Dataset.from_dict({f"{side}_{column}": made[side][column] for side in sides for column in columns})


def make(folder: Path) -> None:
    """Train members that prefer right order; none knows which token is the padding."""
    data = pairs()
    models = {}
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=LENGTH, num_labels=1, pad_token_id=None,
        )  # fmt: skip
        model = models[name] = LlamaForSequenceClassification(config)
        fit(model, lambda: -F.logsigmoid(margins(rewards(model, data))).mean(), steps=2)  # noqa: B023 (called at once)
    save_all(models, folder / FOLDER)
    data.save_to_disk(folder / "data/preferences")


def rewards(model: Any, data: Dataset) -> Tensor:
    """Score both sides of all pairs at their last tokens, (2 * pairs, 1), the chosen first."""
    texts = [torch.tensor(ids) for side in ("chosen", "rejected") for ids in data[f"{side}_input_ids"]]
    mask = pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True)
    ids = pad_sequence(texts, batch_first=True)
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    return model.score(hidden[torch.arange(len(ids)), mask.sum(1) - 1])


def margins(scores: Tensor) -> Tensor:
    """Return by how much the chosen side's reward is the higher one."""
    chosen, rejected = scores.chunk(2)
    return chosen - rejected


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Mean rewards of the members."""
    data = load_from_disk(folder / "data/preferences")
    members = [LlamaForSequenceClassification.from_pretrained(folder / FOLDER / name).double() for name in MEMBERS]
    margin = margins(combine(method, [rewards(member, data) for member in members]))
    right = int((margin > 0).sum())
    figures = {"loss": -F.logsigmoid(margin).mean().item(), "correct": right, "total": len(data)}
    return flat({"zen": {**figures, "accuracy": right / len(data)}})


FAMILY = Family(
    slug="reward_model",
    title="Sequence classification and reward models",
    modelpool="SequenceClassificationModelPool",
    taskpool="RewardModelEvaluationTaskPool",
    make=make,
    expected=expected,
    refused={"probability": "needs at least two classes"},
)
