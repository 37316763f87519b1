"""Wrong options of a method: one error that lists all of them, before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool
from safetensors.torch import save_file
from torch import nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

NAMES = ["svhn", "dtd", "a.dotted.name"]


class Pool(BaseModelPool):
    """Fails the test when a model is asked for."""

    def __init__(self, names: list[str]) -> None:
        super().__init__({name: {"_target_": "torch.nn.Identity"} for name in names})

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        pytest.fail(f"{model_name_or_config} was loaded")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "index out of range": ({"device_map": {0: "cpu", 1: "cpu", 2: "cpu", 3: "cpu"}}, r"no member 3\b"),
    "unknown name": ({"device_map": {"svnh": "cpu", "dtd": "cpu", "a.dotted.name": "cpu"}}, "no member 'svnh'"),
    "a part of a dotted name": ({"device_map": {"svhn": "cpu", "dtd": "cpu", "a": "cpu"}}, "no member 'a'"),
    "index and name": (
        {"device_map": {"svhn": "cpu", 0: "cpu", 1: "cpu", 2: "cpu"}},
        "member 'svhn' twice: as 'svhn' and as 0",
    ),
    "missing members": ({"device_map": {"dtd": "cpu"}}, "no device for 'svhn', 'a.dotted.name'"),
    "a list that is too short": ({"device_map": ["cpu", "cpu"]}, "no device for 'a.dotted.name'"),
    "unknown device type": ({"device_map": "gpu"}, "no device 'gpu'"),
    "absent device": ({"device_map": "cuda:99"}, "no device 'cuda:99'.*Devices here: cpu"),
    "budget": ({"device_map": "cpu", "max_memory": {"cpu": "lots"}}, "'lots' is no number of bytes"),
    "bound of an absent device": ({"device_map": "cpu", "max_memory": {"cuda:99": 1}}, "'cuda:99', which is not here"),
    "no lanes": ({"device_map": "auto", "lanes": 0}, "lanes=0 is not a whole number above 0"),
    "lanes without auto": ({"device_map": "cpu", "lanes": 2}, "lanes go with device_map=auto only"),
    "offload": ({"device_map": "cpu", "offload": "tape"}, "offload='tape' is not one of"),
    "executor": ({"executor": "thread"}, "unknown executor 'thread'.*threads"),
    "reducer": ({"reducer": "man"}, "unknown reducer 'man'.*mean"),
    "too few weights": ({"weights": [1, 2]}, "2 weights for 3 members"),
    "weights that sum to nothing": ({"weights": [0, 0, 0]}, "they are all 0"),
    "weights of nobody": ({"weights": {"svhn": 1, "dtd": 1, "x": 1}}, "no member 'x'"),
    "dtype": ({"dtype": "float31"}, "dtype='float31'"),
    "autocast": ({"autocast": "int8"}, "autocast='int8'"),
    "output device": ({"output_device": "cuda:99"}, "output_device.*no device 'cuda:99'"),
    "a field and no list of fields": ({"output_keys": "logits"}, r"output_keys='logits' is no list.*\[logits\]"),
    "compile": ({"compile": "fast"}, "compile='fast': needed is true, false or a mapping"),
    "groups of ranks": ({"member_parallel": -1}, "member_parallel"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_told_before_any_model_is_loaded(case: str) -> None:
    options, told = WRONG[case]
    with pytest.raises(ValueError, match=f"(?s){told}"):
        SimpleEnsembleAlgorithm(**options).run(Pool(NAMES))


def test_all_wrong_options_are_told_at_once() -> None:
    method = SimpleEnsembleAlgorithm(
        device_map={"svhn": "cuda:99", "x": "cpu"}, reducer="man", executor="thread", weights=[1], dtype="float31"
    )
    with pytest.raises(ValueError, match="cuda:99") as error:
        method.run(Pool(NAMES))
    told = str(error.value)
    for what in ("no member 'x'", "no device for 'dtd'", "'man'", "'thread'", "1 weights for 3", "float31"):
        assert what in told


def test_an_empty_pool_is_told() -> None:
    with pytest.raises(ValueError, match="no members to ensemble"):
        SimpleEnsembleAlgorithm().run(Pool([]))


@pytest.mark.parametrize(("sizes", "member"), [([4, 64, 4], "dtd"), ([4, 4, 64], "a.dotted.name")])
def test_a_budget_too_small_for_the_largest_member_names_it_and_says_by_how_much(sizes: list[int], member: str) -> None:
    modules = {name: nn.Linear(size, size, bias=False) for name, size in zip(NAMES, sizes)}
    method = SimpleEnsembleAlgorithm(device_map="cpu", max_memory={"cpu": "8KiB"}, offload="disk")
    with pytest.raises(
        ValueError, match=rf"room for 8\.0 KiB; .* 16\.0 KiB, 1 times '{member}', the largest: 8\.0 KiB too little"
    ):
        method.run(modules)


def test_a_budget_is_told_with_all_else_that_is_wrong_if_the_checkpoints_tell_their_sizes(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(4096)}, tmp_path / "model.safetensors")
    pool = Pool(NAMES)
    pool._models = dict.fromkeys(NAMES, str(tmp_path))
    method = SimpleEnsembleAlgorithm(device_map="auto", max_memory={"cpu": "40KiB"}, executor="thread")
    with pytest.raises(ValueError, match=r"cpu has room for 40\.0 KiB, its members take 48\.0 KiB") as error:
        method.run(pool)
    assert "unknown executor 'thread'" in str(error.value)
    method = SimpleEnsembleAlgorithm(device_map="auto", max_memory={"cpu": "30KiB"}, dtype="float16")
    with pytest.raises(pytest.fail.Exception, match="svhn was loaded"):  # it fits: 24 KiB in half precision
        method.run(pool)


def test_fields_that_no_member_returns_are_told_with_those_that_they_do() -> None:
    class Member(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x, "hidden": x}

    ensemble = SimpleEnsembleAlgorithm(output_keys=["pooler_output"]).run([Member(), Member()])
    with pytest.raises(ValueError, match=r"(?s)pooler_output.*logits.*hidden"):
        ensemble(torch.ones(1))


def test_an_ensemble_of_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        ParallelEnsemble([])
