"""What surrounds decoding in practice: processors, streamers, criteria, Fabric, FusionBench's own callers."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import pytest
import torch
from language_models import PAD, VOCABULARY, gpt2, llama, prompts, t5
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from fusion_ensemble_plugin import ParallelEnsemble


def distinct(make: Any) -> list[Any]:
    return [make(seed) for seed in (1, 2)]


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.parts.append(value)

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_each_token() -> None:
    streamer = Collector()
    row = {name: tensor[1:2] for name, tensor in prompts().items()}
    tokens = ParallelEnsemble(distinct(gpt2)).generate(**row, max_new_tokens=5, streamer=streamer)
    assert torch.cat([part.flatten() for part in streamer.parts]).tolist() == tokens[0].tolist()
    assert streamer.ended


def test_a_stopping_criterion_sees_each_step_and_ends_decoding() -> None:
    class AfterThree(StoppingCriteria):
        lengths: list[int] = []  # noqa: RUF012 (one call)

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            self.lengths.append(input_ids.shape[1])
            return torch.full((len(input_ids),), input_ids.shape[1] >= 10)

    tokens = ParallelEnsemble(distinct(gpt2)).generate(
        **prompts(), max_new_tokens=9, min_new_tokens=9, stopping_criteria=[AfterThree()]
    )
    assert tokens.shape == (3, 10)
    assert AfterThree.lengths == [8, 9, 10]


def test_a_logits_processor_sees_the_combined_scores_and_decides() -> None:
    class OnlyFive(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            assert scores.shape == (3, VOCABULARY)
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([5]), 0.0)

    tokens = ParallelEnsemble(distinct(gpt2)).generate(**prompts(), max_new_tokens=4, logits_processor=[OnlyFive()])
    assert tokens[:, 7:].tolist() == [[5] * 4] * 3


def test_the_members_weights_are_trainable_again_after_decoding() -> None:
    ensemble = ParallelEnsemble(distinct(gpt2), ["cpu:0", "cpu:1"])
    ensemble.generate(**prompts(), max_new_tokens=2)
    ensemble(**prompts()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in ensemble.parameters())


@pytest.mark.parametrize("make", [gpt2, t5])
def test_generate_is_reachable_through_fabrics_wrapper(make: Any) -> None:
    ensemble = ParallelEnsemble(distinct(make), ["cpu:0", "cpu:1"])
    expected = ensemble.generate(**prompts(), max_length=10, num_beams=2)
    wrapped = lightning.Fabric(accelerator="cpu", devices=1).setup(ensemble)
    assert torch.equal(wrapped.generate(**prompts(), max_length=10, num_beams=2), expected)
    assert wrapped.can_generate()


def test_generate_is_reachable_through_torch_compile() -> None:
    ensemble = ParallelEnsemble(distinct(gpt2))
    compiled = torch.compile(ensemble, backend="eager")
    assert torch.equal(compiled.generate(**prompts(), max_length=9), ensemble.generate(**prompts(), max_length=9))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", eos_token="w1", unk_token="w3")


def test_fusion_benchs_llama_pool_generates_what_the_single_model_would(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM_COLOR_SCHEME", "dark")  # else FusionBench asks a terminal
    from fusion_bench.taskpool.llama.test_generation import LlamaTestGenerationTaskPool

    model = llama(0)
    ensemble = ParallelEnsemble([model, copy.deepcopy(model)], ["cpu:0", "cpu:1"])
    pool = LlamaTestGenerationTaskPool(["w5 w9 w12", "w40 w41"], max_length=16)
    torch.manual_seed(0)
    expected = pool.evaluate(model, tokenizer)
    torch.manual_seed(0)
    report = pool.evaluate(ensemble, tokenizer)
    for conversation in ("conversation_1", "conversation_2"):
        assert report[conversation]["response"] == expected[conversation]["response"] != ""
    assert 0 < report["conversation_1"]["num_tokens"] <= 13


def test_fusion_benchs_flan_t5_accuracy_is_that_of_the_ensembles_answers(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread of the progress bar's
    from fusion_bench.tasks.flan_t5_text_generation.glue_evaluation import evaluate_accuracy

    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    ensemble, ids = ParallelEnsemble(distinct(t5)), prompts()["input_ids"]
    answers = ensemble.generate(ids, max_length=10)
    labels = torch.where(answers == PAD, -100, answers)[:, 1:]
    labels[2] = 5  # a wrong answer for the last row
    loader = DataLoader([{"input_ids": row, "labels": label} for row, label in zip(ids, labels)], batch_size=3)
    assert evaluate_accuracy(fabric.setup(ensemble), loader, tokenizer) == pytest.approx(2 / 3)
