"""Compiled members: compiled once for each kind of input and before lanes run side by side, the same numbers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm


class Counting:
    """A backend that notes in which threads it compiled, and runs what it is given as it is."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        self.compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        assert self.running.acquire(blocking=False), "two threads compile at the same time"
        self.compiled += 1
        self.running.release()
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget what other tests have compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Member(nn.Module):
    """A class of its own: torch leaves the forwards of its own classes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def members(count: int = 4) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Member().eval() for _ in range(count)]


@pytest.mark.parametrize("device_map", ["cpu", ["cpu:0", "cpu:1", "cpu:0", "cpu:1"]], ids=["one device", "two lanes"])
def test_members_are_compiled_once_for_each_kind_of_input_and_give_the_same_numbers(device_map: Any) -> None:
    plain, backend = members(), Counting()
    ensemble = ParallelEnsemble(copy.deepcopy(plain), device_map, compile={"backend": backend, "dynamic": False})
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected = sum(member(x) for member in plain) / 4
        for _ in range(3):
            torch.testing.assert_close(ensemble(x), expected)
        assert backend.compiled == 1  # for all members: torch takes their weights as inputs of one graph
        torch.testing.assert_close(ensemble(x[:2]), expected[:2])
        assert backend.compiled == 2


def test_members_keep_their_types_and_names() -> None:
    ensemble = ParallelEnsemble(members(2), compile={"backend": "eager"})
    assert [type(member) for member in ensemble.model_list] == [Member] * 2
    assert list(ensemble.state_dict()) == list(ParallelEnsemble(members(2)).state_dict())


def test_a_copy_is_compiled_too() -> None:
    other = copy.deepcopy(ParallelEnsemble(members(2), compile={"backend": "eager"}))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        other(torch.randn(4, 6))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1


def test_a_method_takes_the_options_as_a_mapping() -> None:
    plain, backend, x = members(2), Counting(), torch.randn(4, 6)
    method = SimpleEnsembleAlgorithm(compile={"backend": backend}, device_map=["cpu:0", "cpu:1"])
    with torch.no_grad():
        torch.testing.assert_close(method.run(copy.deepcopy(plain))(x), sum(member(x) for member in plain) / 2)
    assert backend.compiled == 1
