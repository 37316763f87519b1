"""Small tasks on real text, the Zen of Python, and a byte tokenizer: nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

END = "<|endoftext|>"
LENGTH = 72
"""Tokens, which are bytes, in the longest text."""
TASKS = ("cola", "sst2")


def zen() -> list[str]:
    """Return the nineteen aphorisms."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        import this

        text = printed.getvalue() or "".join(this.d.get(letter, letter) for letter in this.s)
    return [line for line in text.splitlines()[2:] if line]


def task(name: str) -> tuple[list[str], list[int]]:
    """Return texts and classes: ``cola``, is the order of words right; ``sst2``, does it say what is better.

    Raises:
        KeyError: If there is no such task.
    """
    lines = zen()
    turned = [" ".join(reversed(line.split())) for line in lines]
    texts = [text for pair in zip(lines, turned) for text in pair]
    labels = {"cola": [1, 0] * len(lines), "sst2": [int("better" in text.lower()) for text in texts]}
    return texts, labels[name]


def tokenizer() -> GPT2Tokenizer:
    """Return GPT-2's tokenizer without merges: each byte is a token."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    made = GPT2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=LENGTH)
    made.pad_token = END
    return made


def word_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, those of the tasks and some more, with T5's special tokens in T5's places."""
    known = sorted({word for name in TASKS for text in task(name)[0] for word in text.split()} | set(more))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *known])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def encoded(name: str) -> Dataset:
    """Return a task as the host reads it: ``input_ids``, ``attention_mask`` and ``label``."""
    texts, labels = task(name)
    inputs = tokenizer()(texts, padding="max_length", truncation=True)
    columns = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    return Dataset.from_dict({**columns, "label": labels})


def tensors(data: Dataset) -> dict[str, Tensor]:
    """Return a data set's columns as tensors."""
    return {name: torch.tensor(data[name][:]) for name in data.column_names}


def fit(model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float = 5e-3) -> None:
    """Train a model for some steps on everything at once, so that it knows something of its task."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()


def save_all(models: Mapping[str, Any], folder: Path) -> None:
    """Save models and the tokenizer by their names."""
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
