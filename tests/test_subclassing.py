"""A variant is a class attribute or one overridden method; classes written for FusionBench come over as they are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

LANES = ["cpu:1", "cpu:0", "cpu:1", "cpu:2"]


def members(count: int = 4) -> list[nn.Module]:
    """Return linear members."""
    return [nn.Linear(3, 2, dtype=torch.float64) for _ in range(count)]


def geometric(base: type[Any]) -> type[Any]:
    """Return a class as one writes it for FusionBench, on another base class."""

    class Geometric(base):  # type: ignore[misc]
        """Keeps weights in a buffer, calls `super`, and depends on the order of the members."""

        def __init__(self, models: list[nn.Module], weights: list[float], **kwargs: Any) -> None:
            super().__init__(models, **kwargs)
            self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

        def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
            weighted = [weight * output for weight, output in zip(self.get_buffer("weights"), outputs)]
            mean: Tensor = super()._aggregate_tensors(outputs)
            return torch.stack(weighted).exp().prod(dim=0) + mean

    return Geometric


class FirstTwice(ParallelEnsemble):
    """Defined here, so that it can be pickled."""

    def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
        return outputs[0] * 2


class Range(ParallelEnsemble):
    """A plain function as the class attribute."""

    default_reducer = lambda stacked: stacked.amax(0) - stacked.amin(0)  # noqa: E731


@pytest.mark.parametrize("device_map", [None, LANES, {0: "cpu:0", 1: "cpu:1", 2: "cpu:0", 3: "cpu:1"}])
def test_a_class_written_for_the_host_works_on_our_base_class(device_map: Any) -> None:
    models, x = members(), torch.randn(5, 3, dtype=torch.float64)
    expected = geometric(EnsembleModule)(models, [0.1, 0.2, 0.3, 0.4])(x)
    ours = geometric(ParallelEnsemble)(models, [0.1, 0.2, 0.3, 0.4], device_map=device_map)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    ours.close()


def test_its_state_dict_has_the_keys_that_the_hosts_has() -> None:
    host, ours = (geometric(base)(members(), [1.0] * 4) for base in (EnsembleModule, ParallelEnsemble))
    assert host.state_dict().keys() == ours.state_dict().keys()
    ours.load_state_dict(host.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), host(x), rtol=1e-12, atol=1e-12)


def test_an_override_gets_the_outputs_in_the_order_of_the_members_on_the_output_device() -> None:
    class Noted(ParallelEnsemble):
        def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
            self.seen = [(output.flatten()[0].item(), output.device.type) for output in outputs]
            return outputs[0]

    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("value", torch.tensor([value]))

        def forward(self) -> Tensor:
            return self.get_buffer("value")

    ensemble = Noted([Constant(float(i)) for i in range(4)], LANES)
    ensemble()
    ensemble.close()
    assert ensemble.seen == [(0.0, "cpu"), (1.0, "cpu"), (2.0, "cpu"), (3.0, "cpu")]


def test_an_override_is_called_for_each_floating_field() -> None:
    class Fields(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": x, "hidden": (x + 1, x + 2), "ids": torch.arange(3), "none": None}

    output = FirstTwice([Fields(), Fields()])(torch.ones(2))
    assert output["logits"].tolist() == [2.0, 2.0]
    assert [hidden.tolist() for hidden in output["hidden"]] == [[4.0, 4.0], [6.0, 6.0]]
    assert output["ids"].tolist() == [0, 1, 2]
    assert output["none"] is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda ensemble: pickle.loads(pickle.dumps(ensemble))])
def test_a_copy_uses_its_own_override(again: Callable[[nn.Module], nn.Module]) -> None:
    ensemble = FirstTwice(members(), LANES)
    x = torch.randn(5, 3, dtype=torch.float64)
    twin = again(ensemble)
    nn.init.zeros_(ensemble.model_list[0].weight)
    nn.init.zeros_(ensemble.model_list[0].bias)
    assert torch.equal(ensemble(x), torch.zeros(5, 2, dtype=torch.float64))
    torch.testing.assert_close(twin(x), 2 * twin.model_list[0](x))  # type: ignore[union-attr, index, operator]
    ensemble.close()
    twin.close()  # type: ignore[operator]


def test_a_class_attribute_may_be_a_name_or_a_function() -> None:
    class Largest(ParallelEnsemble):
        default_reducer = "max"

    models, x = members(), torch.randn(5, 3, dtype=torch.float64)
    stacked = torch.stack([model(x) for model in models])
    assert torch.equal(Largest(models)(x), stacked.amax(0))
    assert torch.equal(Range(models)(x), stacked.amax(0) - stacked.amin(0))


def test_a_reducer_given_to_a_variant_wins_over_its_class_attribute() -> None:
    models, x = members(), torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(Range(models, reducer="min")(x), torch.stack([model(x) for model in models]).amin(0))


def test_a_variant_of_the_method_names_its_ensemble() -> None:
    class RangeAlgorithm(SimpleEnsembleAlgorithm):
        ensemble_class = Range

    models, x = members(), torch.randn(5, 3, dtype=torch.float64)
    ensemble = RangeAlgorithm(device_map=LANES).run(models)
    assert isinstance(ensemble, Range)
    stacked = torch.stack([model(x) for model in models])
    torch.testing.assert_close(ensemble(x), stacked.amax(0) - stacked.amin(0))
    ensemble.close()


def test_a_function_that_keeps_the_members_dimension_is_an_error_with_the_shapes() -> None:
    def centred(stacked: Tensor) -> Tensor:
        return stacked - stacked.mean(dim=0)

    with pytest.raises(ValueError, match=r"'centred' turned \(4, 5, 2\).* into \(4, 5, 2\) and not into \(5, 2\)"):
        ParallelEnsemble(members(), reducer=centred)(torch.randn(5, 3, dtype=torch.float64))
