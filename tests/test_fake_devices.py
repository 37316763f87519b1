"""Two GPUs without a GPU: fake tensors know their device, and a layer that meets one of another device fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.device_map import UNLIMITED

HOMES = pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1"])


class Two(nn.Module):
    """Returns a dict with a nested list, and takes a keyword."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, 3)
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Any]:
        hidden = self.first(x + self.shift + (0 if shift is None else shift))
        return {"hidden": [hidden], "scores": self.second(hidden)}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A machine with two GPUs of 1 GiB each."""
    present = {"cpu": UNLIMITED, "meta": UNLIMITED, "cuda": 2}
    monkeypatch.setattr("fusion_ensemble_plugin.placement.present_devices", lambda: present)
    monkeypatch.setattr("fusion_ensemble_plugin.memory._free", lambda memory: 2**30)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        yield mode


def two(width: int = 4) -> Two:
    """Return a member as a pool loads it: real, and on the CPU."""
    with unset_fake_temporarily():
        return Two(width)


def ensemble_of(count: int, device_map: Any, **options: Any) -> ParallelEnsemble:
    """Return an ensemble in one thread: fake tensors are not for several."""
    return ParallelEnsemble([two() for _ in range(count)], device_map, executor="sequential", **options)


def devices(output: dict[str, Any]) -> set[str]:
    """Return the devices of all tensors in an output."""
    return {str(output["hidden"][0].device), str(output["scores"].device)}


def test_a_layer_that_meets_a_tensor_of_the_other_gpu_fails() -> None:
    with pytest.raises(RuntimeError, match="device"):
        nn.Linear(4, 4, device="cuda:0")(torch.ones(2, 4, device="cuda:1"))


def test_auto_spreads_members_over_the_gpus_by_their_bytes() -> None:
    ensemble = SimpleEnsembleAlgorithm(device_map="auto").run([two(4), two(64), two(4), two(4)])
    assert ensemble.placement is not None
    assert ensemble.placement.devices == ("cuda:1", "cuda:0", "cuda:1", "cuda:1")
    assert [str(member.first.weight.device) for member in ensemble.model_list] == list(ensemble.placement.devices)


@HOMES
def test_members_never_meet_a_tensor_of_the_other_gpu(home: str) -> None:
    ensemble = ensemble_of(5, "auto")
    output = ensemble(torch.ones(2, 4, device=home), shift=torch.ones(4, device=home))
    assert output["scores"].shape == (2, 3)
    assert devices(output) == {"cuda:0" if home == "cpu" else home}


@HOMES
def test_inputs_may_lie_on_several_devices(home: str) -> None:
    ensemble = ensemble_of(3, ["cuda:1", "cuda:0", "cpu:0"])
    output = ensemble(torch.ones(2, 4, device=home), shift=torch.ones(4, device="cuda:1"))
    assert devices(output) == {"cuda:1" if home == "cpu" else home}


@HOMES
@pytest.mark.parametrize("target", ["cuda:0", "cuda:1", "cpu"])
def test_nor_after_a_task_pool_has_moved_what_wraps_the_ensemble(home: str, target: str) -> None:
    wrapper = nn.Sequential(ensemble_of(4, "auto")).to(target)
    places = [{str(parameter.device) for parameter in member.parameters()} for member in wrapper[0].model_list]
    assert places == [{"cuda:0"}, {"cuda:1"}, {"cuda:0"}, {"cuda:1"}]
    assert devices(wrapper(torch.ones(2, 4, device=home))) == {"cuda:0" if home == "cpu" else home}


@HOMES
@pytest.mark.parametrize("output_device", ["cpu", "cuda:1"])
def test_outputs_come_back_where_they_are_asked_for(home: str, output_device: str) -> None:
    ensemble = ensemble_of(2, "auto", output_device=output_device)
    assert devices(ensemble(torch.ones(2, 4, device=home))) == {output_device}


def test_without_a_map_members_compute_where_they_are() -> None:
    ensemble = ParallelEnsemble([two().to("cuda:1"), two().to("cuda:0")])
    assert devices(ensemble(torch.ones(2, 4))) == {"cuda:1"}
