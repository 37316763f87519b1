"""Key-value caches are dropped and, if the user names fields, all others too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from containers import Frozen, Pair, Prediction, Record, same
from language_models import gpt2, prompts, t5
from transformers import BatchEncoding, CLIPVisionConfig, CLIPVisionModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.fields import kept_fields

LOGITS = torch.ones(1, 2)


def clip_towers(count: int = 2) -> list[CLIPVisionModel]:
    """Return tiny CLIP vision towers."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return [CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval() for _ in range(count)]


@pytest.mark.parametrize("key", ["past_key_values", "cache_params", "mems"])
def test_what_is_called_like_a_cache_is_dropped(key: str) -> None:
    assert same(kept_fields({"logits": LOGITS, key: (LOGITS, LOGITS)}), {"logits": LOGITS})


@pytest.mark.parametrize("cache", [DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())])
def test_a_cache_is_dropped_whatever_it_is_called(cache: Any) -> None:
    assert same(kept_fields({"logits": LOGITS, "state": cache}), {"logits": LOGITS})
    assert kept_fields(cache) is None


def test_where_a_field_has_a_fixed_place_none_stands_for_the_cache() -> None:
    assert same(kept_fields((LOGITS, DynamicCache())), (LOGITS, None))
    assert same(kept_fields([LOGITS, DynamicCache()]), [LOGITS, None])
    assert same(kept_fields(Pair(LOGITS, DynamicCache())), Pair(LOGITS, None))
    assert same(kept_fields(Record(LOGITS, DynamicCache())), Record(LOGITS))


def test_an_output_without_caches_is_kept_as_it_is() -> None:
    output = {"logits": LOGITS}
    assert kept_fields(output) is output
    assert kept_fields(LOGITS) is LOGITS


def test_an_output_that_is_given_is_not_changed() -> None:
    output = CausalLMOutputWithPast(logits=LOGITS, past_key_values=DynamicCache())
    kept = kept_fields(output)
    assert list(kept) == ["logits"]
    assert isinstance(kept, CausalLMOutputWithPast)
    assert list(output) == ["logits", "past_key_values"]


@pytest.mark.parametrize("make", [gpt2, t5])
def test_language_models_caches_are_dropped(make: Any) -> None:
    inputs = prompts()
    if make is t5:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    models = [make(seed) for seed in (1, 2)]
    assert isinstance(models[0](**inputs, use_cache=True).past_key_values, Cache)
    output = ParallelEnsemble(models)(**inputs, use_cache=True)
    assert output.past_key_values is None
    expected = torch.stack([model(**inputs).logits for model in models]).double().mean(0)
    torch.testing.assert_close(output.logits.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "keys", "kept"),
    [
        ({"a": 1, "b": 2, 0: 3}, ["b", 0], {"b": 2, 0: 3}),
        ({"a": 1, "b": 2}, ["b", "a"], {"a": 1, "b": 2}),  # the output's order, not the user's
        (BatchEncoding({"a": 1, "b": 2}), ["a"], BatchEncoding({"a": 1})),
        ((1, 2, 3), [1], (None, 2, None)),
        ([1, 2, 3], [0, 2], [1, None, 3]),
        (Pair(1, 2), ["left"], Pair(1, None)),
        (Record(1, 2), ["second"], Record(None, 2)),
        (Frozen(1), ["first"], None),
        (Prediction(1, 2), ["scores"], Prediction(1)),
    ],
)
def test_only_the_named_fields_are_kept(output: Any, keys: list[Any], kept: Any) -> None:
    if isinstance(output, Frozen):
        kept = Frozen(1)
        object.__setattr__(kept, "derived", None)
    assert same(kept_fields(output, keys), kept)


def test_a_model_output_without_its_first_fields_is_a_plain_one_so_that_no_position_means_another_field() -> None:
    output = BaseModelOutputWithPooling(last_hidden_state=LOGITS, pooler_output=LOGITS + 1)
    kept = kept_fields(output, ["pooler_output"])
    assert type(kept) is ModelOutput
    assert same(kept["pooler_output"], LOGITS + 1)
    assert type(kept_fields(output, ["last_hidden_state"])) is BaseModelOutputWithPooling


@pytest.mark.parametrize(
    ("output", "there"),
    [
        ({"logits": LOGITS, "hidden": LOGITS}, r"its fields are \['logits', 'hidden'\]"),
        ((LOGITS, LOGITS), r"its fields are \[0, 1\]"),
        (Pair(LOGITS, LOGITS), r"its fields are \['left', 'right'\]"),
        (Record(LOGITS), r"its fields are \['first', 'second'\]"),
        (BaseModelOutputWithPooling(LOGITS), r"its fields are \['last_hidden_state'\]"),
        (LOGITS, "it is a Tensor without fields"),
    ],
)
def test_a_field_that_no_member_returns_is_an_error_that_says_what_they_return(output: Any, there: str) -> None:
    with pytest.raises(ValueError, match=rf"output_keys \['pooled'\] are not in the output: {there}"):
        kept_fields(output, ["pooled"])


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1"]])
def test_an_ensemble_of_clip_towers_keeps_the_pooled_output_only(device_map: Any) -> None:
    towers, images = clip_towers(), torch.randn(2, 3, 8, 8)
    ensemble = ParallelEnsemble(towers, device_map, output_keys=["pooler_output"])
    with torch.no_grad():
        output = ensemble(images)
        expected = torch.stack([tower(images).pooler_output for tower in towers]).double().mean(0)
    ensemble.close()
    assert list(output) == ["pooler_output"]
    torch.testing.assert_close(output["pooler_output"].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_member_that_lacks_the_field_is_named() -> None:
    class Unpooled(CLIPVisionModel):
        def forward(self, images: torch.Tensor) -> Any:
            return {"features": super().forward(images).last_hidden_state}

    (tower,) = clip_towers(1)
    ensemble = ParallelEnsemble([tower, Unpooled(tower.config)], names=["mnist", "svhn"], output_keys=["pooler_output"])
    fields = r"output_keys \['pooler_output'\] are not in the output: its fields are \['features'\]"
    with pytest.raises(ValueError, match=f"member 'svhn': {fields}"):
        ensemble(torch.randn(2, 3, 8, 8))
