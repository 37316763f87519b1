"""Causal language models under lm-eval: log-likelihoods of given answers, and answers that the members decode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from language_models import slow_greedy
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from .family import CONFIG, WEIGHTS, Family, Figures, combine, flat
from .texts import fit, word_tokenizer, zen

MEMBERS = ("chat", "code", "math")
STEPS = (8, 10, 12)
FOLDER = "models/causal_lm"
ANSWER = 3
"""Words at the end of a line that are asked for."""


def questions() -> list[dict[str, Any]]:
    """Return beginnings of aphorisms with two ends each, the right one at place ``right``."""
    lines = [line.split() for line in zen() if len(line.split()) > ANSWER]
    ends = [" ".join(line[-ANSWER:]) for line in lines]
    rows = []
    for index, line in enumerate(lines):
        pair = [ends[index], ends[index - 1]]
        right = index % 2
        choices = {"first": pair[right], "second": pair[1 - right]}
        rows.append({"begin": " ".join(line[:-ANSWER]), "end": ends[index], "right": right, **choices})
    return rows


def make(folder: Path) -> None:
    """Let three models learn the aphorisms by heart, none of them well."""
    tokenizer = word_tokenizer()
    batch = tokenizer([f"{line} </s>" for line in zen()], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for seed, (name, steps) in enumerate(zip(MEMBERS, STEPS)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        ids = batch["input_ids"]
        fit(model, lambda: model(input_ids=ids, labels=labels).loss, steps, rate=2e-2)  # noqa: B023 (called at once)
        model.save_pretrained(folder / FOLDER / name)
        tokenizer.save_pretrained(folder / FOLDER / name)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/zen.jsonl").write_text("\n".join(map(json.dumps, questions())))
    (folder / "tasks").mkdir()
    for task in ("zen_choose.yaml", "zen_write.yaml"):
        copyfile(CONFIG / "tasks" / task, folder / "tasks" / task)


@torch.no_grad()
def expected(folder: Path, method: str) -> Figures:
    """Score both ends of each line, and write the end greedily, without caches."""
    members = [LlamaForCausalLM.from_pretrained(folder / FOLDER / name).double() for name in MEMBERS]
    tokenizer = AutoTokenizer.from_pretrained(folder / FOLDER / MEMBERS[0])
    right = written = 0
    distance = 0.0
    for row in questions():
        likely = torch.stack([_likelihood(members, method, tokenizer, row["begin"], row[end]) for end in ENDS])
        right += int(likely.argmax() == row["right"])
        distance += (likely.softmax(0) - torch.eye(2)[row["right"]]).square().sum().item()
        prompt = tokenizer(row["begin"], return_tensors="pt")
        inputs = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        tokens = slow_greedy(members, inputs, ANSWER, lambda p: _mean(method, p))
        written += tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == row["end"]
    count = len(questions())
    return {
        "zen_choose/acc,none": right / count,
        "zen_choose/brier_score,none": distance / count,
        "zen_write/exact_match,none": written / count,
    }


ENDS = ("first", "second")


def _likelihood(members: Sequence[Any], method: str, tokenizer: Any, begin: str, end: str) -> Tensor:
    """Return the log-probability of an end after its beginning."""
    ids = tokenizer(f"{begin} {end}", return_tensors="pt")["input_ids"]
    scores = combine(method, [member(input_ids=ids).logits[0] for member in members]).log_softmax(-1)
    places = range(ids.shape[1] - ANSWER, ids.shape[1])
    return torch.stack([scores[place - 1, ids[0, place]] for place in places]).sum()


def _mean(method: str, probabilities: Tensor) -> Tensor:
    weights = torch.tensor(WEIGHTS[method], dtype=probabilities.dtype)
    return torch.einsum("m,mbv->bv", weights / weights.sum(), probabilities).log()


def figures(report: Any) -> Figures:
    """Return the metrics in lm-eval's file of results."""
    metrics = flat(report["results"])
    return {name: value for name, value in metrics.items() if "stderr" not in name}


FAMILY = Family(
    slug="lm_eval_harness",
    title="Causal language models under lm-eval",
    modelpool="CausalLMPool",
    taskpool="LMEvalHarnessTaskPool",
    make=make,
    expected=expected,
    figures=figures,
    needs="lm_eval",
    report="reports/lm_eval/**/results_*.json",
)
