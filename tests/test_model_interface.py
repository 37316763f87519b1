"""What task pools, Fabric and transformers expect of a model; what is set on an ensemble reaches each member."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from fusion_bench.models.wrappers.switch import SwitchModule, set_active_option
from saved_ensembles import IMAGES, assert_same_bits, tower, two_towers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedConfig

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.absent import Absent

TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])
LANES = ["cpu:0", "cpu:1"]


def config(**options: Any) -> GPT2Config:
    return GPT2Config(vocab_size=17, n_positions=16, n_embd=16, n_layer=1, n_head=2, **options)


def classifiers() -> list[nn.Module]:
    return [GPT2ForSequenceClassification(config(num_labels=1)).eval() for _ in range(3)]


def test_what_is_written_to_the_config_reaches_every_member() -> None:
    ensemble = ParallelEnsemble(classifiers())
    with pytest.raises(ValueError, match="padding token"):
        ensemble(TOKENS)
    ensemble.config.pad_token_id = 1
    assert [member.config.pad_token_id for member in ensemble.model_list] == [1, 1, 1]
    assert ensemble(TOKENS).logits.shape == (2, 1)


def test_what_is_written_to_the_generation_config_reaches_every_member() -> None:
    ensemble = ParallelEnsemble([GPT2LMHeadModel(config()).eval() for _ in range(2)])
    ensemble.generation_config.max_new_tokens = 3
    ensemble.generation_config.pad_token_id = 0
    assert [m.generation_config.max_new_tokens for m in ensemble.model_list] == [3, 3]
    assert ensemble.generate(TOKENS).shape == (2, 7)


def test_of_members_that_other_processes_hold_nothing_is_asked() -> None:
    here = classifiers()[:2]
    ensemble = ParallelEnsemble([Absent(0), *here])
    ensemble.config.pad_token_id = 1
    ensemble.tie_weights()
    assert [member.config.pad_token_id for member in here] == [1, 1]
    assert ensemble.name_or_path == here[0].name_or_path


def test_an_update_reaches_every_members_configs() -> None:
    ensemble = ParallelEnsemble([GPT2LMHeadModel(config()).eval() for _ in range(2)])
    ensemble.config.update({"pad_token_id": 5})
    assert ensemble.generation_config.update(max_new_tokens=3, colour="blue") == {"colour": "blue"}
    assert [member.config.pad_token_id for member in ensemble.model_list] == [5, 5]
    assert [member.generation_config.max_new_tokens for member in ensemble.model_list] == [3, 3]


def test_a_shared_config_passes_for_the_first_members() -> None:
    ensemble = two_towers()
    first = ensemble.model_list[0].config
    assert isinstance(ensemble.config, CLIPVisionConfig)
    assert isinstance(ensemble.config, PreTrainedConfig)
    assert ensemble.config == first
    assert repr(ensemble.config) == repr(first)
    assert ensemble.config.to_dict() == first.to_dict()
    for duplicate in (copy.copy, copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))):
        again = duplicate(ensemble.config)
        assert type(again) is CLIPVisionConfig
        again.hidden_size = 7
        assert first.hidden_size != 7


def test_a_part_of_a_config_is_shared_too() -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {"text_config": {**small, "vocab_size": 9}, "vision_config": {**small, "image_size": 8, "patch_size": 4}}
    ensemble = ParallelEnsemble([CLIPModel(CLIPConfig(**parts)) for _ in range(2)])
    ensemble.config.text_config.eos_token_id = 5
    assert [member.config.text_config.eos_token_id for member in ensemble.model_list] == [5, 5]


def test_models_without_a_config_have_none_as_an_ensemble() -> None:
    assert not hasattr(ParallelEnsemble([nn.Identity(), nn.Identity()]), "config")
    assert not hasattr(ParallelEnsemble([nn.Identity(), nn.Identity()]), "val_preprocess")


def test_it_is_called_as_the_first_member_for_its_tokenizer_is_loaded_from_there(tmp_path: Path) -> None:
    for name in ("chat", "code"):
        GPT2LMHeadModel(config()).save_pretrained(tmp_path / name)
    members = [GPT2LMHeadModel.from_pretrained(tmp_path / name) for name in ("chat", "code")]
    assert ParallelEnsemble(members).name_or_path == str(tmp_path / "chat")
    assert not hasattr(ParallelEnsemble([nn.Identity(), nn.Identity()]), "name_or_path")


def test_weights_are_tied_in_each_member() -> None:
    ensemble = ParallelEnsemble([GPT2LMHeadModel(config()) for _ in range(2)])
    for member in ensemble.model_list:
        member.lm_head.weight = nn.Parameter(torch.zeros(17, 16))
    ensemble.tie_weights()
    for member in ensemble.model_list:
        assert member.lm_head.weight is member.transformer.wte.weight
    ParallelEnsemble([nn.Identity()]).tie_weights()


def test_image_preprocessing_is_the_first_members() -> None:
    members = [nn.Identity(), nn.Identity()]
    for member in members:
        member.train_preprocess, member.val_preprocess = f"train {id(member)}", f"val {id(member)}"
    ensemble = ParallelEnsemble(members)
    assert ensemble.train_preprocess == members[0].train_preprocess
    assert ensemble.val_preprocess == members[0].val_preprocess


@torch.no_grad()
def test_an_active_option_reaches_switches_inside_the_members() -> None:
    members = [nn.Sequential(SwitchModule({"svhn": nn.Linear(2, 2), "dtd": nn.Linear(2, 5)})) for _ in range(2)]
    ensemble = ParallelEnsemble(members, LANES)
    assert len(set_active_option(ensemble, "dtd")) == 2
    assert ensemble(torch.ones(1, 2)).shape == (1, 5)


@torch.no_grad()
@pytest.mark.parametrize("device_map", [None, LANES], ids=["no map", "two lanes"])
@pytest.mark.parametrize("setup", ["setup", "setup_module", "to_device"])
def test_it_works_inside_fabric(setup: str, device_map: Any) -> None:
    ensemble, expected = two_towers(device_map=device_map), two_towers()
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    wrapped = getattr(fabric, setup)(ensemble)
    assert_same_bits(wrapped, expected, IMAGES)
    assert wrapped.config.hidden_size == expected.config.hidden_size


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*Dynamo does not know how to trace:UserWarning")  # it breaks its graph there
@pytest.mark.parametrize("device_map", [None, LANES], ids=["no map", "two lanes"])
def test_it_works_inside_torch_compile(device_map: Any) -> None:
    class Member(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x).relu()}

    members, x = [Member(), Member()], torch.randn(3, 4)
    expected = sum(member(x)["logits"] for member in members) / 2
    compiled = torch.compile(ParallelEnsemble(members, device_map), backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x)["logits"], expected)
    torch._dynamo.reset()


@torch.no_grad()
def test_a_deep_copy_has_weights_of_its_own() -> None:
    ensemble = two_towers()
    other = copy.deepcopy(ensemble)
    for parameter in other.parameters():
        parameter.zero_()
    assert_same_bits(ensemble, two_towers(), IMAGES)
    shared = {p.data_ptr() for p in ensemble.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert shared == set()
    other.config.hidden_act = "relu"
    assert ensemble.config.hidden_act == tower(0).config.hidden_act
