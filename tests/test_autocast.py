"""Members under autocast: the option on every executor, and the caller's own context."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

EXECUTORS = ["sequential", "threads", "stacked"]


class Seen(nn.Module):
    """Returns a layer's output, and says in which dtype it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.layers(x[:, None])
        return {"logits": hidden, "computed_in": str(hidden.dtype)}


def members(count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Seen().eval() for _ in range(count)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("device_map", ["cpu", ["cpu:0", "cpu:1", "cpu:0"]], ids=["one device", "two lanes"])
@pytest.mark.parametrize("who", ["the option", "the caller"])
def test_members_compute_in_the_lower_precision(executor: str, device_map: Any, who: str) -> None:
    option = torch.bfloat16 if who == "the option" else None
    ensemble = ParallelEnsemble(members(), device_map, executor=executor, autocast=option)
    x = torch.randn(4, 8)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=who == "the caller"):
            output = ensemble(x)
        assert output["computed_in"] == "torch.bfloat16"
        expected = sum(copy.deepcopy(m).double()(x.double())["logits"] for m in members()) / 3
    torch.testing.assert_close(output["logits"].double(), expected, atol=0.02, rtol=0.02)
    assert not torch.equal(output["logits"].double(), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_callers_own_setting_is_left_as_it_was(executor: str) -> None:
    ensemble = ParallelEnsemble(members(), "cpu", executor=executor, autocast=torch.bfloat16)
    with torch.no_grad():
        ensemble(torch.randn(4, 8))
        assert not torch.is_autocast_enabled("cpu")
        assert Seen()(torch.randn(4, 8))["computed_in"] == "torch.float32"


def test_the_option_wins_over_a_caller_with_another_precision() -> None:
    ensemble = ParallelEnsemble(members(), "cpu", autocast=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert ensemble(torch.randn(4, 8))["computed_in"] == "torch.bfloat16"


def test_a_method_takes_it_by_name() -> None:
    ensemble = SimpleEnsembleAlgorithm(autocast="bfloat16").run(members())
    with torch.no_grad():
        assert ensemble(torch.randn(4, 8))["computed_in"] == "torch.bfloat16"
