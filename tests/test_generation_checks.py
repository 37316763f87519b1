"""What ensemble decoding refuses, before any member runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from language_models import PAD, TOKENS, gpt2, llama, prompts, t5
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.cache_utils import EncoderDecoderCache, QuantizedLayer
from transformers.modeling_outputs import BaseModelOutput

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.generation.caches import can_be_reordered


def ensemble_of(*models: nn.Module, **options: Any) -> ParallelEnsemble:
    """Make an ensemble whose members fail the test if they run."""
    for model in models:
        model.register_forward_pre_hook(lambda *_: pytest.fail("a member ran"))
    return ParallelEnsemble(models, **options)


class OwnWay(GPT2LMHeadModel):
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **kwargs)


def classifier() -> PreTrainedModel:
    return GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=97, pad_token_id=PAD))


def test_members_that_cannot_generate_are_all_named_with_the_reason() -> None:
    own = OwnWay(gpt2(1).config)
    ensemble = ensemble_of(gpt2(0), classifier(), nn.Linear(1, 1), own, names=["a", "b", "c", "d"])
    assert not ensemble.can_generate()
    with pytest.raises(TypeError) as caught:
        ensemble.generate(**prompts())
    message = str(caught.value)
    assert "'b' (GPT2ForSequenceClassification has no language model head" in message
    assert "'c' (Linear has no language model head" in message
    assert "'d' (OwnWay has a generate of its own)" in message
    assert "'a'" not in message


def test_an_ensemble_of_language_models_says_that_it_can_generate() -> None:
    assert ParallelEnsemble([gpt2(0), llama(1)]).can_generate()
    assert ParallelEnsemble([t5(0)]).can_generate()


MISMATCHES: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "vocabularies": (lambda: [gpt2(0), gpt2(1, vocab_size=120)], r"vocab_size 97 \('one'\) and 120 \('two'\)"),
    "end tokens": (
        lambda: [gpt2(0), gpt2(1, eos_token_id=5)],
        r"eos_token_id 1 \('one'\) and 5 \('two'\) \(pass eos_token_id=\.\.\. to choose one\)",
    ),
    "several end tokens": (lambda: [gpt2(0), gpt2(1, eos_token_id=[1, 5])], r"eos_token_id 1 \('one'\) and \(1, 5\)"),
    "padding": (lambda: [llama(0), llama(1, pad_token_id=3)], r"pad_token_id 0 \('one'\) and 3 \('two'\)"),
    "start tokens": (lambda: [t5(0), t5(1, decoder_start_token_id=3)], r"decoder_start_token_id 0 \('one'\) and 3"),
    "kinds": (lambda: [gpt2(0), t5(1)], r"kinds of model decoder-only \('one'\) and encoder-decoder \('two'\)"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_members_that_do_not_fit_together_are_refused_with_both_values(mismatch: str) -> None:
    members, message = MISMATCHES[mismatch]
    with pytest.raises(ValueError, match=message):
        ensemble_of(*members(), names=["one", "two"]).generate(**prompts())


def test_all_mismatches_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"vocab_size 97 .* and 120 .*; eos_token_id 1 .* and 5"):
        ensemble_of(gpt2(0), gpt2(1, vocab_size=120, eos_token_id=5)).generate(**prompts())


@pytest.mark.parametrize("how", ["argument", "config"])
def test_a_token_that_the_caller_chooses_need_not_match(how: str) -> None:
    chosen = {"eos_token_id": 7} if how == "argument" else {"generation_config": GenerationConfig(eos_token_id=7)}
    ensemble = ParallelEnsemble([gpt2(0), gpt2(1, eos_token_id=5)])
    assert ensemble.generate(**prompts(), **chosen, max_length=9).shape == (3, 9)


def test_an_unknown_token_and_a_list_of_one_need_not_match() -> None:
    ensemble = ParallelEnsemble([gpt2(0), gpt2(1, eos_token_id=[1], pad_token_id=None)])
    assert ensemble.generate(**prompts(), max_length=9).shape == (3, 9)


def test_members_of_weight_zero_need_not_fit() -> None:
    ensemble = ParallelEnsemble([t5(0), gpt2(1), gpt2(2)], weights=[0, 1, 1])
    assert ensemble.generate(**prompts(), max_length=9).shape == (3, 9)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True}, "output_attentions: an ensemble has no layers of its own"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states"),
    "early exit": ({"assistant_early_exit": 1}, "assistant_early_exit"),
    "a single cache": ({"past_key_values": DynamicCache()}, r"past_key_values \(DynamicCache\): each member has"),
    "quantized beams": (
        {"num_beams": 2, "cache_implementation": "quantized"},
        r"num_beams=2: the caches of these members cannot be reordered: '0' \(quantized\), '1' \(quantized\)",
    ),
    "a typing error": ({"max_new_tokns": 3}, "max_new_tokns"),
    "an unknown reducer": ({"reducer": "probabillity_mean"}, "Did you mean 'probability_mean'"),
    "a reducer that gives no scores": ({"reducer": "variance"}, "VarianceReducer does not turn scores into scores"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_make_no_sense_for_several_models_are_refused(option: str) -> None:
    options, message = OPTIONS[option]
    with pytest.raises(ValueError, match=message):
        ensemble_of(gpt2(0), gpt2(1)).generate(**prompts(), **options)


def test_a_reducer_that_takes_no_weights_is_refused_for_a_weighted_ensemble() -> None:
    with pytest.raises(ValueError, match=r"weights=\{'a': 1.0, 'b': 2.0\}: the reducer takes no weights"):
        ensemble_of(gpt2(0), gpt2(1), names=["a", "b"], weights=[1, 2]).generate(**prompts(), reducer="median")


def test_an_input_that_a_member_does_not_take_names_the_member() -> None:
    with pytest.raises(ValueError, match="pixel_values") as caught:
        ensemble_of(gpt2(0), names=["only"]).generate(**prompts(), pixel_values=torch.zeros(1))
    assert caught.value.__notes__ == ["raised by ensemble member 'only'"]


def test_encoder_outputs_are_refused_since_each_member_has_an_encoder() -> None:
    encoded = BaseModelOutput(last_hidden_state=torch.zeros(3, 7, 32))
    with pytest.raises(ValueError, match="encoder_outputs: each member encodes for itself"):
        ensemble_of(t5(0), t5(1)).generate(encoder_outputs=encoded)


def rwkv(seed: int) -> RwkvForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 32}
    return RwkvForCausalLM(RwkvConfig(**sizes, **TOKENS)).eval()


def test_beams_are_refused_where_a_member_keeps_its_past_in_its_own_way() -> None:
    with pytest.raises(ValueError, match=r"num_beams=3: .* cannot be reordered: 'state' \(RwkvForCausalLM\)\. Pass"):
        ensemble_of(gpt2(0), rwkv(1), names=["cache", "state"]).generate(**prompts(), num_beams=3)


def test_a_member_that_keeps_its_past_in_its_own_way_decodes_greedily_and_without_a_cache() -> None:
    model, ids = rwkv(0), prompts()["input_ids"]
    ensemble = ParallelEnsemble([model, model])
    for way in ({}, {"num_beams": 3, "use_cache": False}):
        options = {"max_new_tokens": 5, "pad_token_id": PAD, **way}
        assert torch.equal(ensemble.generate(ids, **options), model.generate(ids, **options))


def test_a_quantized_cache_cannot_follow_beams() -> None:
    class Quantized(QuantizedLayer):
        def _quantize(self, tensor: Any, axis: int) -> Any:
            return tensor

        def _dequantize(self, q_tensor: Any) -> Any:
            return q_tensor

    plain, quantized = DynamicCache(), DynamicCache()
    quantized.layers.append(Quantized())
    assert can_be_reordered(plain)
    assert can_be_reordered(EncoderDecoderCache(plain, plain))
    assert not can_be_reordered(quantized)
    assert not can_be_reordered(EncoderDecoderCache(plain, quantized))
