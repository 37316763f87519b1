"""Saving and loading: the same bits come back, whatever the members are; and what else an ensemble remembers."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from language_models import gpt2, llama, prompts, t5
from lightning_utilities.core.rank_zero import rank_zero_only
from saved_ensembles import IMAGES, assert_same_bits, mlp, tower, two_towers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, GPT2ForSequenceClassification

from fusion_ensemble_plugin import ClipLogitEnsemble, MedianEnsemble, ParallelEnsemble
from fusion_ensemble_plugin.reducers.order_statistics import TrimmedMeanReducer

WORDS = prompts()
TEXTS = {**WORDS, "decoder_input_ids": WORDS["input_ids"]}


def saved(ensemble: ParallelEnsemble, folder: Path, **options: Any) -> Any:
    """Save and load."""
    ensemble.save_pretrained(folder)
    return ParallelEnsemble.from_pretrained(folder, **options)


def manifest(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "ensemble.json").read_text())
    return data


FAMILIES: dict[str, tuple[Callable[[int], Any], dict[str, Tensor]]] = {
    "clip": (tower, {"pixel_values": IMAGES}),
    "gpt2, tied": (gpt2, WORDS),
    "llama": (llama, WORDS),
    "llama, tied": (lambda seed: llama(seed, tie_word_embeddings=True), WORDS),
    "t5, tied four times": (t5, TEXTS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_ensemble_answers_bit_for_bit_as_the_saved_one(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    make, inputs = FAMILIES[family]
    inputs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    ensemble = ParallelEnsemble([make(0).to(dtype), make(1).to(dtype)])
    loaded = saved(ensemble, tmp_path / "saved")
    assert loaded.dtype == dtype
    assert [type(member) for member in loaded.model_list] == [type(member) for member in ensemble.model_list]
    assert_same_bits(ensemble, loaded, **inputs)


def test_members_of_different_architectures_come_back_as_they_were(tmp_path: Path) -> None:
    ensemble = ParallelEnsemble([llama(0), gpt2(1)], names=["llama-2.7", "gpt2"])
    loaded = saved(ensemble, tmp_path / "saved")
    assert loaded.names == ("llama-2.7", "gpt2")
    assert_same_bits(ensemble, loaded, **WORDS)
    assert torch.equal(loaded.generate(**WORDS, max_new_tokens=5), ensemble.generate(**WORDS, max_new_tokens=5))


def test_members_with_heads_of_their_own_width_come_back(tmp_path: Path) -> None:
    config = gpt2(0).config
    config.num_labels = 3
    ensemble = ParallelEnsemble([GPT2ForSequenceClassification(config).eval() for _ in range(2)])
    assert_same_bits(ensemble, saved(ensemble, tmp_path / "saved"), **WORDS)


def test_names_weights_reducer_and_output_keys_come_back(tmp_path: Path) -> None:
    reducer = {"name": "trimmed_mean", "fraction": 0.25}
    names = ["a.b", "keys", "c/d"]
    ensemble = ParallelEnsemble(
        [tower(i) for i in range(3)],
        names=names,
        reducer=reducer,
        weights=[1, 0, 1],
        output_keys=["pooler_output"],
        autocast=torch.bfloat16,
    )
    loaded = saved(ensemble, tmp_path / "saved")
    assert loaded.names == tuple(names)
    assert loaded.member_weights == (1.0, 0.0, 1.0)
    assert loaded.output_keys == ("pooler_output",)
    assert loaded.autocast is torch.bfloat16
    assert_same_bits(ensemble, loaded, IMAGES)
    assert manifest(tmp_path / "saved")["reducer"] == reducer


def test_options_given_at_loading_take_the_place_of_those_saved(tmp_path: Path) -> None:
    ensemble = two_towers(reducer="max")
    loaded = saved(ensemble, tmp_path / "saved", reducer="min", executor="sequential")
    assert_same_bits(ParallelEnsemble([tower(0), tower(1)], reducer="min"), loaded, IMAGES)


def test_a_variant_comes_back_as_its_class(tmp_path: Path) -> None:
    MedianEnsemble([tower(i) for i in range(3)]).save_pretrained(tmp_path / "saved")
    assert type(ParallelEnsemble.from_pretrained(tmp_path / "saved")) is MedianEnsemble
    assert type(MedianEnsemble.from_pretrained(tmp_path / "saved")) is MedianEnsemble
    with pytest.raises(ValueError, match="is a MedianEnsemble, not a ClipLogitEnsemble"):
        ClipLogitEnsemble.from_pretrained(tmp_path / "saved")


class HalfEnsemble(ParallelEnsemble):
    """Half the mean."""

    def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
        return sum(outputs) / (2 * len(outputs))


def test_a_class_that_nobody_announced_comes_back_once_it_is_imported(tmp_path: Path) -> None:
    ensemble = HalfEnsemble([tower(0), tower(1)])
    loaded = saved(ensemble, tmp_path / "saved")
    assert type(loaded) is HalfEnsemble
    assert_same_bits(ensemble, loaded, IMAGES)


def test_a_reducer_given_as_an_object_is_saved_by_its_registered_name(tmp_path: Path) -> None:
    ParallelEnsemble([tower(i) for i in range(5)], reducer=TrimmedMeanReducer(0.2)).save_pretrained(tmp_path / "saved")
    assert manifest(tmp_path / "saved")["reducer"]["name"] == "trimmed_mean"


def test_a_reducer_without_a_name_must_be_given_when_loading(tmp_path: Path) -> None:
    def middle(stacked: Tensor) -> Tensor:
        return stacked.median(dim=0).values

    ensemble = two_towers(reducer=middle)
    ensemble.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"names no reducer.*give reducer="):
        ParallelEnsemble.from_pretrained(tmp_path / "saved")
    assert_same_bits(ensemble, ParallelEnsemble.from_pretrained(tmp_path / "saved", reducer=middle), IMAGES)


def test_identical_weights_are_stored_once_also_under_another_config(tmp_path: Path) -> None:
    twin = tower(0)
    twin.config.id2label = {0: "cat", 1: "dog"}
    ensemble = ParallelEnsemble([tower(0), tower(1), twin, tower(0)])
    loaded = saved(ensemble, tmp_path / "saved")
    assert len(list((tmp_path / "saved").rglob("model.safetensors"))) == 2
    assert [member.config.id2label[0] for member in loaded.model_list] == ["LABEL_0", "LABEL_0", "cat", "LABEL_0"]
    assert_same_bits(ensemble, loaded, IMAGES)


def test_what_differs_in_the_sign_of_a_zero_is_not_identical(tmp_path: Path) -> None:
    positive, negative = tower(0), tower(0)
    positive.vision_model.post_layernorm.bias.data[0] = 0.0
    negative.vision_model.post_layernorm.bias.data[0] = -0.0
    ParallelEnsemble([positive, negative]).save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").rglob("model.safetensors"))) == 2


def test_each_members_folder_can_be_loaded_by_transformers(tmp_path: Path) -> None:
    member = gpt2(0)
    ParallelEnsemble([member, gpt2(1)]).save_pretrained(tmp_path / "saved")
    folder = tmp_path / "saved" / manifest(tmp_path / "saved")["members"][0]["folder"]
    assert_same_bits(member, AutoModelForCausalLM.from_pretrained(folder), **WORDS)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_members_are_saved_and_can_be_loaded_offloaded(offload: str, tmp_path: Path) -> None:
    ensemble = ParallelEnsemble([tower(0), tower(1)], "cpu", offload=offload)
    loaded = saved(ensemble, tmp_path / "saved", device_map="cpu", offload=offload)
    assert loaded.placement == ensemble.placement
    assert_same_bits(ensemble, loaded, IMAGES)


def test_stacked_members_are_saved_each_with_its_own_weights(tmp_path: Path) -> None:
    ensemble = two_towers(executor="stacked")
    ensemble(IMAGES)  # stacks them
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = ParallelEnsemble.from_pretrained(tmp_path / "saved")
    assert_same_bits(two_towers(), loaded, IMAGES)
    size = sum(weights.nelement() * weights.element_size() for weights in tower(0).parameters())
    for file in (tmp_path / "saved").rglob("model.safetensors"):
        assert size < file.stat().st_size < 1.1 * size


def test_loaded_members_go_to_lanes(tmp_path: Path) -> None:
    ensemble = two_towers()
    loaded = saved(ensemble, tmp_path / "saved", device_map={"mnist": "cpu:1", "svhn": "cpu:0"})
    assert loaded.placement.devices == ("cpu:1", "cpu:0")
    assert_same_bits(ensemble, loaded, IMAGES)


def test_the_attention_implementation_comes_back(tmp_path: Path) -> None:
    eager, sdpa = tower(0, attn_implementation="eager"), tower(1, attn_implementation="sdpa")
    loaded = saved(ParallelEnsemble([eager, sdpa]), tmp_path / "saved")
    assert [member.config._attn_implementation for member in loaded.model_list] == ["eager", "sdpa"]


def test_an_ensemble_of_ensembles_comes_back(tmp_path: Path) -> None:
    inner = MedianEnsemble([tower(i) for i in range(3)], names=["x", "y", "z"])
    ensemble = ParallelEnsemble([inner, tower(3)], weights=[3, 1])
    loaded = saved(ensemble, tmp_path / "saved")
    assert type(loaded.model_list[0]) is MedianEnsemble
    assert_same_bits(ensemble, loaded, IMAGES)


def test_other_modules_are_saved_as_weights_and_loaded_into_modules_of_the_caller(tmp_path: Path) -> None:
    ensemble = ParallelEnsemble([mlp(0), mlp(1)], names=["a", "b"])
    ensemble.save_pretrained(tmp_path / "saved")
    inputs = torch.randn(5, 4)
    by_name = ParallelEnsemble.from_pretrained(tmp_path / "saved", models={"a": mlp(8), "b": mlp(9)})
    assert_same_bits(ensemble, by_name, inputs)
    with torch.device("meta"):  # no memory, no random weights before the saved ones come
        by_function = ParallelEnsemble.from_pretrained(tmp_path / "saved", models=lambda name: mlp(7))
    assert_same_bits(ensemble, by_function, inputs)
    with pytest.raises(ValueError, match=r"only the weights of 'b' \(torch.nn.*Sequential\); give modules"):
        ParallelEnsemble.from_pretrained(tmp_path / "saved", models={"a": mlp(8)})


def test_a_module_that_does_not_fit_the_weights_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    ParallelEnsemble([mlp(0)], names=["a"]).save_pretrained(tmp_path / "saved")
    other = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(8), nn.ReLU())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"'0.weight' is \(9, 4\), saved is \(8, 4\)|it has no '3.weight'"):
        ParallelEnsemble.from_pretrained(tmp_path / "saved", models={"a": other})
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_transformers_model_that_was_rebuilt_by_hand_is_saved_as_weights(tmp_path: Path) -> None:
    def altered(seed: int) -> CLIPVisionModel:
        model = tower(seed)
        model.vision_model.post_layernorm = nn.Identity()
        return model

    ensemble = ParallelEnsemble([altered(0), altered(1)])
    ensemble.save_pretrained(tmp_path / "saved")
    assert [member["kind"] for member in manifest(tmp_path / "saved")["members"]] == ["module", "module"]
    loaded = ParallelEnsemble.from_pretrained(tmp_path / "saved", models=lambda name: altered(5))
    assert_same_bits(ensemble, loaded, IMAGES)


def test_weights_tied_and_untied_by_hand_come_back_so(tmp_path: Path) -> None:
    tied, untied = llama(0), llama(1, tie_word_embeddings=True)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach() + 1)
    ensemble = ParallelEnsemble([tied, untied])
    first, second = (loaded := saved(ensemble, tmp_path / "saved")).model_list
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert second.lm_head.weight is not second.model.embed_tokens.weight
    assert_same_bits(ensemble, loaded, **WORDS)


def test_a_loaded_ensemble_is_copied_pickled_and_saved_again_as_any(tmp_path: Path) -> None:
    ensemble = two_towers()
    loaded = saved(ensemble, tmp_path / "saved")
    again = saved(loaded, tmp_path / "saved")  # over the files that its weights are mapped from
    for one in (loaded, again, copy.deepcopy(loaded), pickle.loads(pickle.dumps(saved(loaded, tmp_path / "new")))):
        assert_same_bits(ensemble, one, IMAGES)


def test_what_is_changed_in_a_loaded_ensemble_does_not_reach_the_files(tmp_path: Path) -> None:
    ensemble = two_towers()
    loaded = saved(ensemble, tmp_path / "saved")
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert_same_bits(ensemble, ParallelEnsemble.from_pretrained(tmp_path / "saved"), IMAGES)


def test_only_the_first_of_several_processes_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    two_towers().save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1"]])
def test_a_state_dict_of_the_hosts_ensemble_loads_into_ours_and_back(device_map: Any) -> None:
    host = EnsembleModule([tower(0), tower(1)])
    ours = ParallelEnsemble([tower(2), tower(3)], device_map)
    ours.load_state_dict(host.state_dict())
    assert_same_bits(two_towers(), ours, IMAGES)
    back = EnsembleModule([tower(4), tower(5)])
    back.load_state_dict(ours.state_dict())
    assert_same_bits(host, back, IMAGES)


def test_a_state_dict_of_the_hosts_ensemble_loads_into_offloaded_members(tmp_path: Path) -> None:
    ours = ParallelEnsemble([tower(2), tower(3)], "cpu", offload="disk")
    ours.load_state_dict(EnsembleModule([tower(0), tower(1)]).state_dict())
    assert_same_bits(two_towers(), ours, IMAGES)
