"""Flan-T5 text generation: the members decide on each word of the answer together, by the mean of probabilities."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, load_from_disk
from language_models import slow_greedy
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from .family import WEIGHTS, Family, Figures, flat
from .texts import TASKS, fit, task, tensors, word_tokenizer

MEMBERS = ("cola", "mrpc", "sst2")
FOLDER = "models/flan_t5"
ANSWERS = {"cola": ("unacceptable", "acceptable"), "sst2": ("negative", "positive")}


def encoded(name: str, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Return a task as the host's preprocessing leaves it; the mask is of ones, as the task pool gives none."""
    texts, classes = task(name)
    inputs = tokenizer([f"{name} {text}" for text in texts], padding="max_length", max_length=20)
    answers = [tokenizer(ANSWERS[name][label])["input_ids"] + [tokenizer.eos_token_id] for label in classes]
    seen = [[1] * len(ids) for ids in inputs["input_ids"]]
    return Dataset.from_dict({"input_ids": inputs["input_ids"], "attention_mask": seen, "labels": answers})


def make(folder: Path) -> None:
    """Train one model a task, and one on both; save the data where the host looks for its preprocessed GLUE."""
    tokenizer = word_tokenizer(*TASKS, *ANSWERS["cola"], *ANSWERS["sst2"])
    data = {name: encoded(name, tokenizer) for name in TASKS}
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(tokenizer), d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
        batches = [tensors(data[each]) for each in ([name] if name in data else TASKS)]
        fit(model, lambda: sum(model(**batch).loss for batch in batches), steps=25, rate=1e-2)  # noqa: B023
        model.save_pretrained(folder / FOLDER / name)
        tokenizer.save_pretrained(folder / FOLDER / name)
    for name in TASKS:
        cached = folder / "outputs/cache/flan-t5" / f"_load_{name}_dataset_cached"
        DatasetDict({"validation": data[name]}).save_to_disk(cached)


def expected(folder: Path, method: str) -> Figures:
    """Decode greedily without caches, everything anew at each step, and count the answers that are right."""
    members = [T5ForConditionalGeneration.from_pretrained(folder / FOLDER / name).double() for name in MEMBERS]
    tokenizer = AutoTokenizer.from_pretrained(folder / FOLDER / MEMBERS[0])
    report = {}
    for name in TASKS:
        batch = tensors(load_from_disk(folder / "outputs/cache/flan-t5" / f"_load_{name}_dataset_cached")["validation"])
        labels = tokenizer.batch_decode(batch.pop("labels"), skip_special_tokens=True)
        tokens = slow_greedy(members, batch, 9, partial(_pool, method))
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        report[name] = {"accuracy": sum(map(str.__eq__, texts, labels)) / len(labels)}
    return flat(report)


def _pool(method: str, probabilities: Tensor) -> Tensor:
    weights = torch.tensor(WEIGHTS[method], dtype=probabilities.dtype)
    return torch.einsum("m,mbv->bv", weights / weights.sum(), probabilities).log()


FAMILY = Family(
    slug="flan_t5",
    title="Flan-T5 text generation",
    modelpool="Seq2SeqLMPool",
    taskpool="FlanT5GLUETextGenerationTaskPool",
    make=make,
    expected=expected,
    alike=1,  # plain means decode by probabilities too
)
