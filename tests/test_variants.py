"""The methods besides the simple ensemble: each YAML makes its class, with every option, and the numbers are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from combinations import ORACLES
from fusion_bench.method import BaseAlgorithm
from fusion_bench.method.ensemble import MaxModelPredictorAlgorithm as HostsMax
from fusion_bench.method.ensemble import WeightedEnsembleAlgorithm as HostsWeighted
from fusion_bench.modelpool import BaseModelPool
from fusion_bench.utils import import_object, instantiate
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fusion_ensemble_plugin
from fusion_ensemble_plugin import SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.reducers.order_statistics import TrimmedMeanReducer

FOLDER = Path(__file__).parent.parent / "config/method/ensemble"
METHODS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NAMES = ["mnist", "svhn", "a.b", "dtd", "keys"]
LANES = ["cpu:0", "cpu:1", "cpu:0", "cpu:2", "cpu:1"]

NEED_MORE = ["clip_logit_ensemble", "calibrated_ensemble", "ensemble_report", "greedy_ensemble", "learned_weights"]
"""Methods that need a CLIP pool, or a task pool; tested on their own."""


@pytest.fixture(scope="module")
def composed(host_config_dir: Path) -> Callable[..., BaseAlgorithm]:
    """Return a function that makes a method from its YAML, as ``fusion_bench method=ensemble/...`` does."""

    def make(name: str, *overrides: str) -> BaseAlgorithm:
        with initialize_config_dir(str(host_config_dir), version_base=None):
            cfg = compose("fabric_model_fusion", [f"method=ensemble/{name}", *overrides])
        made = instantiate(cfg.method, _recursive_=cfg.method.get("_recursive_", False))
        assert isinstance(made, BaseAlgorithm)
        return made

    return make


def members() -> dict[str, nn.Module]:
    """Return five classifiers of four classes."""
    return {name: nn.Linear(3, 4, dtype=torch.float64) for name in NAMES}


def outputs_of(models: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Return all outputs, ``(members, batch, classes)``."""
    return torch.stack([model(x) for model in models.values()])


class Unloadable(BaseModelPool):
    """A pool that must not be loaded from."""

    def load_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise AssertionError("a model was loaded before all options were checked")


def unloadable() -> Unloadable:
    return Unloadable(models=dict.fromkeys(NAMES))


def test_every_method_that_needs_nothing_but_members_has_an_oracle() -> None:
    assert sorted([*ORACLES, *NEED_MORE]) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_through_a_yaml_file_and_back(
    name: str, composed: Callable[..., BaseAlgorithm], tmp_path: Path
) -> None:
    changed = ["device_map=[cpu:0,cpu:1]", "executor=threads", "output_keys=[logits]", "dtype=bfloat16", "offload=disk"]
    changed += ["weights={mnist:1,svhn:2}", "max_memory={cpu:1GiB}", "compile={mode:default}", "output_device=cpu"]
    for overrides in ([], [f"method.{change}" for change in changed]):
        method = composed(name, *overrides)
        method.to_yaml(tmp_path / "method.yaml")
        again = type(method).from_yaml(tmp_path / "method.yaml")
        assert type(again) is type(method)
        assert again.config == method.config
        assert "python/object" not in (tmp_path / "method.yaml").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_the_simple_ensemble_is_in_each_method_and_written_once(
    name: str, composed: Callable[..., BaseAlgorithm]
) -> None:
    own = set(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
    shared = set(yaml.safe_load((FOLDER / "simple_ensemble.yaml").read_text()))
    assert shared <= set(composed(name).config)
    if name != "simple_ensemble":
        assert own & shared <= {"_target_", "reducer", "cache"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_announced_under_the_name_of_its_yaml(name: str) -> None:
    target = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["_target_"]
    (entry,) = entry_points(group="fusion_bench.method", name=name)
    assert entry.load() is import_object(target)
    assert target.removeprefix("fusion_ensemble_plugin.") in fusion_ensemble_plugin.__all__


@pytest.mark.parametrize("executor", ["sequential", "threads", "stacked"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_method_gives_its_oracles_numbers_on_lanes_with_every_executor(
    name: str, executor: str, composed: Callable[..., BaseAlgorithm]
) -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    ensemble = composed(name, f"method.device_map=[{','.join(LANES)}]", f"method.executor={executor}").run(models)
    with torch.no_grad():
        result, expected = ensemble(x), ORACLES[name](outputs_of(models, x))
    ensemble.close()
    if name == "majority_vote":  # ties are broken, by 3 percent at most: compare where there are none
        clear = expected.topk(2).values.diff().abs().squeeze(-1) > 0.1
        torch.testing.assert_close(result.exp()[clear], expected[clear], atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ["probability_ensemble", "log_opinion_pool", "majority_vote"])
def test_methods_of_class_scores_combine_the_logits_of_an_output_and_average_the_rest(
    name: str, composed: Callable[..., BaseAlgorithm]
) -> None:
    class Classifier(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(x), "hidden": self.head(x) + 1}

    heads, x = members(), torch.randn(6, 3, dtype=torch.float64)
    result = composed(name).run({key: Classifier(head) for key, head in heads.items()})(x)
    torch.testing.assert_close(result["logits"], composed(name).run(heads)(x))
    torch.testing.assert_close(result["hidden"], outputs_of(heads, x).mean(0) + 1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[0.5, 0.1, 2.0, 0.4, 1.0], [0.0, 1.0, 0.0, 3.0, 0.0]])
def test_weights_do_as_in_the_hosts_weighted_ensemble(
    weights: list[float], normalize: bool, composed: Callable[..., BaseAlgorithm]
) -> None:
    models, x = {name: nn.Linear(3, 4) for name in NAMES}, torch.randn(6, 3)
    host = HostsWeighted(weights=weights, normalize=normalize).run(dict(models))
    assert host.weights.dtype == torch.float32
    options = [f"method.normalize={normalize}", f"method.weights={weights}"]
    torch.testing.assert_close(composed("weighted_ensemble", *options).run(models)(x), host(x))


def test_weights_by_name_do_as_the_same_weights_in_order(composed: Callable[..., BaseAlgorithm]) -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    by_name = composed("weighted_ensemble", "method.weights={svhn:2,dtd:4,keys:5,mnist:1,a.b:3}").run(models)(x)
    assert torch.equal(by_name, composed("weighted_ensemble", "method.weights=[1,2,3,4,5]").run(models)(x))


def test_the_defaults_run_where_the_hosts_weighted_ensemble_crashes(composed: Callable[..., BaseAlgorithm]) -> None:
    models, x = {name: nn.Linear(3, 4).bfloat16() for name in NAMES}, torch.randn(6, 3).bfloat16()
    result = composed("weighted_ensemble").run(models)(x)
    assert result.dtype == torch.bfloat16
    expected = outputs_of(models, x).float().mean(0)
    torch.testing.assert_close(result.float(), expected, atol=0.02, rtol=0.02)


def test_the_largest_value_is_the_hosts(composed: Callable[..., BaseAlgorithm]) -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(composed("max_model_predictor").run(models)(x), HostsMax().run(dict(models))(x))


def test_a_temperature_is_an_option_on_the_command_line(composed: Callable[..., BaseAlgorithm]) -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    result = composed("probability_ensemble", "method.reducer.temperature=2").run(models)(x)
    torch.testing.assert_close(result, (outputs_of(models, x) / 2).softmax(-1).mean(0).log())


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("weighted_ensemble", ["weights=[1,2]"], ["2 weights for 5 members"]),
        ("weighted_ensemble", ["weights=[1,1,-1,1,1]"], ["'a.b' has weight -1", "normalize: false"]),
        ("weighted_ensemble", ["weights=[0,0,0,0,0]"], ["all 0"]),
        ("weighted_ensemble", ["weights=[1,nan,inf,1,1]"], ["'svhn' has weight nan", "'a.b' has weight inf"]),
        (
            "weighted_ensemble",
            ["weights={mnist:1,svnh:1,a.b:1,dtd:1,keys:1}"],
            ["no member 'svnh'", "no weight for 'svhn'"],
        ),
        ("weighted_ensemble", ["normalize=false", "reducer=max"], ["normalize=False goes with the reducer 'mean'"]),
        ("max_model_predictor", ["weights=[1,2,3,4,5]"], ["the reducer takes no weights"]),
        ("median_ensemble", ["weights=[1,2,3,4,5]"], ["the reducer takes no weights"]),
        ("trimmed_mean_ensemble", ["reducer.fraction=0.5"], ["fraction=0.5", "[0, 0.5)"]),
        ("trimmed_mean_ensemble", ["reducer.fraction=-0.1"], ["fraction=-0.1", "[0, 0.5)"]),
        ("trimmed_mean_ensemble", ["reducer.fraction=nan"], ["fraction=nan", "[0, 0.5)"]),
        ("probability_ensemble", ["reducer.temperature=0", "reducer.class_dim=x"], ["temperature=0", "class_dim='x'"]),
        ("probability_ensemble", ["+reducer.temprature=2"], ["temprature", "it takes class_dim, temperature"]),
        ("simple_ensemble", ["reducer=medain"], ["unknown reducer 'medain'", "trimmed_mean", "Did you mean 'median'?"]),
        ("simple_ensemble", ["reducer={_target_: no.such.Thing}"], ["no.such.Thing"]),
        (
            "clip_logit_ensemble",
            ["reducer=variance"],
            ["VarianceReducer does not turn logits into logits", "no CLIP model '_pretrained_'", "no processor"],
        ),
        ("clip_logit_ensemble", [], ["no CLIP model '_pretrained_'", "method.clip_model="]),
        ("majority_vote", ["clip_model=some/clip"], ["no processor, which a reducer other than mean and sum needs"]),
    ],
)
def test_a_wrong_option_is_told_before_any_model_is_loaded(
    name: str, overrides: list[str], told: list[str], composed: Callable[..., BaseAlgorithm]
) -> None:
    method = composed(name, *(f"{'+' * o.startswith('+')}method.{o.removeprefix('+')}" for o in overrides))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        method.run(unloadable())
    assert [words for words in told if words not in str(caught.value)] == []


def test_all_that_is_wrong_is_told_at_once(composed: Callable[..., BaseAlgorithm]) -> None:
    wrong = ["device_map={mnist:teapot}", "weights=[1,-2]", "executor=thread", "dtype=int8", "reducer.fraction=0.7"]
    with pytest.raises(ValueError, match="teapot") as caught:
        composed("trimmed_mean_ensemble", *(f"method.{option}" for option in wrong)).run(unloadable())
    told = ["no device for", "2 weights for 5 members", "Did you mean 'threads'?", "dtype='int8'", "fraction=0.7"]
    assert [words for words in told if words not in str(caught.value)] == []


def test_negative_weights_are_a_plain_sum_if_it_is_not_to_be_normalized() -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    method = fusion_ensemble_plugin.WeightedEnsembleAlgorithm(normalize=False, weights=[1, -1, 0, 0, 0])
    torch.testing.assert_close(method.run(models)(x), models["mnist"](x) - models["svhn"](x))


@given(fraction=st.floats(0, 0.5, exclude_max=True), count=st.integers(1, 200))
def test_a_trimmed_mean_leaves_at_least_one_member_whatever_the_fraction(fraction: float, count: int) -> None:
    assert count - 2 * TrimmedMeanReducer(fraction).cut(count) >= 1


def test_a_plain_python_reducer_is_an_option_too() -> None:
    models, x = members(), torch.randn(6, 3, dtype=torch.float64)
    spec = {"_target_": "fusion_ensemble_plugin.reducers.order_statistics.TrimmedMeanReducer", "fraction": 0.4}
    result = SimpleEnsembleAlgorithm(reducer=spec).run(models)(x)
    torch.testing.assert_close(result, outputs_of(models, x).quantile(0.5, dim=0))
