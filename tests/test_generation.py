"""Ensemble decoding against single models, and against decoding that recomputes everything at each step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from language_models import (
    EOS,
    FAMILIES,
    PAD,
    VOCABULARY,
    gpt2,
    llama,
    mean_of_probabilities,
    next_scores,
    prompts,
    slow_beams,
    slow_greedy,
    t5,
)
from torch import Tensor

from fusion_ensemble_plugin import ParallelEnsemble

LANES = ["cpu:0", "cpu:1", "cpu:0"]

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "two of four beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "beams that stop early": {"num_beams": 3, "early_stopping": True},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "max_length": {"max_new_tokens": None, "max_length": 15},
    "penalties": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "length decay": {"exponential_decay_length_penalty": (3, 1.5)},
    "no cache": {"use_cache": False, "num_beams": 2},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def decode(model: Any, seed: int = 0, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    tokens = model.generate(**{"max_new_tokens": 12, "pad_token_id": PAD, **options})
    assert tokens.shape[1] > 2  # something was decoded
    return tokens


def distinct(make: Callable[..., Any]) -> list[Any]:
    """Make three members, in float64: large random weights make much of a rounding error in float32."""
    return [make(seed).double() for seed in (1, 2, 3)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device_map", [None, LANES], ids=["in place", "two lanes"])
def test_copies_of_a_model_decode_token_by_token_as_the_model(family: str, way: str, device_map: Any) -> None:
    model = FAMILIES[family](0)
    inputs = prompts(batch=1 if way == "prompt lookup" else 3)  # transformers looks up one prompt at a time
    ensemble = ParallelEnsemble([model, copy.deepcopy(model), copy.deepcopy(model)], device_map)
    expected = decode(model, **inputs, **WAYS[way])
    assert torch.equal(decode(ensemble, **inputs, **WAYS[way]), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device_map", [None, LANES], ids=["in place", "two lanes"])
def test_distinct_members_decode_greedily_as_if_everything_were_recomputed(family: str, device_map: Any) -> None:
    members, inputs = distinct(FAMILIES[family]), prompts()
    expected = slow_greedy(members, inputs, steps=12)
    ensemble = ParallelEnsemble(members, device_map)
    assert torch.equal(decode(ensemble, **inputs), expected)
    singles = [decode(member, **inputs) for member in members]
    assert not any(torch.equal(single, expected) for single in singles)  # no member decides alone


@pytest.mark.parametrize("family", FAMILIES)
def test_distinct_members_search_with_beams_as_if_everything_were_recomputed(family: str) -> None:
    members, inputs = distinct(FAMILIES[family]), prompts()
    expected = slow_beams(members, inputs, steps=6, beams=4)
    ensemble = ParallelEnsemble(members, LANES)
    assert torch.equal(decode(ensemble, **inputs, num_beams=4, max_new_tokens=6, min_new_tokens=6), expected)


def test_members_of_different_architectures_decode_together() -> None:
    members, inputs = [gpt2(1).double(), llama(2).double()], prompts()
    expected = slow_greedy(members, inputs, steps=12)
    assert torch.equal(decode(ParallelEnsemble(members, LANES[:2]), **inputs), expected)


def test_the_end_token_ends_a_row_and_padding_fills_it() -> None:
    members, inputs = distinct(gpt2), prompts()
    free = decode(ParallelEnsemble(members), **inputs, eos_token_id=VOCABULARY - 1)
    end = int(free[1, inputs["input_ids"].shape[1] + 3])  # what the second row says at its fourth step
    ended = decode(ParallelEnsemble(members), **inputs, eos_token_id=end)[1]
    row = free[1].tolist()
    length = row.index(end, inputs["input_ids"].shape[1]) + 1
    assert ended.tolist()[:length] == row[:length]
    assert set(ended.tolist()[length:]) <= {PAD}


def log_probability_mean(probabilities: Tensor) -> Tensor:
    return probabilities.log().mean(0).log_softmax(-1)


def weighted_mean(probabilities: Tensor) -> Tensor:
    return torch.tensordot(torch.tensor([0.2, 0.5, 0.3]).double(), probabilities, 1).log()


POOLS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "the default": ({}, {}, mean_of_probabilities),
    "weights": ({"weights": [2, 5, 3]}, {}, weighted_mean),
    "the ensemble's reducer": ({"reducer": "log_probability_mean"}, {}, log_probability_mean),
    "the call's reducer": ({"reducer": "max"}, {"reducer": "log_probability_mean"}, log_probability_mean),
    "the mean of logits, asked for": ({}, {"reducer": "mean"}, log_probability_mean),
    "a member of weight 0": ({"weights": [1, 1, 0]}, {}, lambda probabilities: probabilities[:2].mean(0).log()),
    "a function": (
        {"reducer": lambda scores: scores.log_softmax(-1)[1]},
        {},
        lambda probabilities: probabilities[1].log(),
    ),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reducer_makes_the_distribution_of_the_next_token(family: str, pool: str) -> None:
    made, called, oracle = POOLS[pool]
    members, inputs = distinct(FAMILIES[family]), prompts()
    ensemble = ParallelEnsemble(members, LANES, **made)
    output = ensemble.generate(
        **inputs, **called, max_new_tokens=1, do_sample=True, top_k=0, output_logits=True, return_dict_in_generate=True
    )
    start = torch.full((3, 1 if family == "t5" else 0), PAD)
    expected = next_scores(members, inputs, start, oracle).exp()
    torch.testing.assert_close(output.logits[0].double().softmax(-1), expected, atol=2e-6, rtol=2e-4)


def test_every_registered_reducer_of_scores_decodes() -> None:
    from fusion_ensemble_plugin.plugins import registry

    inputs = prompts()
    for name in sorted(set(registry().reducers) - {"variance"}):
        tokens = decode(ParallelEnsemble(distinct(gpt2), reducer=name), **inputs)
        assert torch.equal(tokens[:, :7], inputs["input_ids"]), name


def test_a_subclass_that_aggregates_tensors_its_own_way_decodes_that_way() -> None:
    class SecondSpeaks(ParallelEnsemble):
        def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
            return outputs[1]

    members, inputs = distinct(gpt2), prompts()
    assert torch.equal(decode(SecondSpeaks(members), **inputs), decode(members[1], **inputs))


def test_sampling_draws_from_the_distribution() -> None:
    members = [gpt2(1, vocab_size=11).double(), gpt2(2, vocab_size=11).double()]
    prompt = torch.tensor([[3, 4, 5]])
    draws = 20_000
    torch.manual_seed(0)
    tokens = ParallelEnsemble(members).generate(
        prompt, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=draws
    )
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    expected = next_scores(members, inputs, torch.empty(1, 0, dtype=torch.long))[0].exp()
    seen = torch.bincount(tokens[:, -1], minlength=11)
    chi_square = ((seen - draws * expected) ** 2 / (draws * expected)).sum()
    assert chi_square < 29.6  # the 0.999 quantile at 10 degrees of freedom


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_a_seed_is_reproducible(family: str) -> None:
    ensemble, options = ParallelEnsemble(distinct(FAMILIES[family]), LANES), {"do_sample": True, **prompts()}
    first, again, other = (decode(ensemble, seed, **options) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lanes_and_one_place_give_the_same_scores() -> None:
    members, inputs = distinct(gpt2), prompts()
    options = {**inputs, "output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 5}
    here, there = (ParallelEnsemble(members, device_map).generate(**options) for device_map in (None, LANES))
    for left, right in zip(here.scores, there.scores):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_half_precision_members_decode_as_the_single_model() -> None:
    model, inputs = llama(0).bfloat16(), prompts()
    assert torch.equal(decode(ParallelEnsemble([model, model]), **inputs), decode(model, **inputs))


def test_a_prompt_continues_from_the_caches_that_an_earlier_call_returned() -> None:
    members, inputs = distinct(gpt2), prompts()
    ensemble = ParallelEnsemble(members, LANES)
    whole = decode(ensemble, **inputs, max_new_tokens=9, eos_token_id=VOCABULARY - 1)
    first = ensemble.generate(**inputs, max_new_tokens=4, eos_token_id=VOCABULARY - 1, return_dict_in_generate=True)
    assert first.past_key_values.get_seq_length() == 7 + 4 - 1
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    rest = decode(
        ensemble,
        input_ids=first.sequences,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=5,
        eos_token_id=VOCABULARY - 1,
    )
    assert torch.equal(rest, whole)


def test_an_assistant_model_drafts_for_the_ensemble() -> None:
    members, prompt = distinct(gpt2), {name: tensor[1:2] for name, tensor in prompts().items()}
    ensemble = ParallelEnsemble(members)
    expected = decode(ensemble, **prompt)
    assert torch.equal(decode(ensemble, **prompt, assistant_model=members[0]), expected)


def test_guidance_runs_the_ensemble_without_the_prompt_too() -> None:
    model, inputs = gpt2(0), prompts()
    ensemble = ParallelEnsemble([model, copy.deepcopy(model)])
    assert torch.equal(decode(ensemble, **inputs, guidance_scale=2.0), decode(model, **inputs, guidance_scale=2.0))


def test_without_a_prompt_decoding_starts_at_the_start_token() -> None:
    model = gpt2(0)
    assert torch.equal(decode(ParallelEnsemble([model, model])), decode(model))


def test_long_prompts_may_be_read_in_chunks() -> None:
    members, inputs = distinct(gpt2), prompts()
    expected = decode(ParallelEnsemble(members), **inputs)
    assert torch.equal(decode(ParallelEnsemble(members), **inputs, prefill_chunk_size=3), expected)


def test_t5_decodes_on_from_given_decoder_tokens() -> None:
    model, inputs = t5(0), prompts()
    given = torch.tensor([[PAD, 5], [PAD, 6], [PAD, 7]])
    expected = decode(model, **inputs, decoder_input_ids=given)
    assert torch.equal(decode(ParallelEnsemble([model, model]), **inputs, decoder_input_ids=given), expected)
    assert EOS not in given
