"""A whole forward: every executor and map against a float64 loop over the members, gradients, copies, two callers."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fusion_ensemble_plugin import ParallelEnsemble

COUNT = 5
EXECUTORS = ["sequential", "threads", "stacked"]
MAPS: dict[str, Any] = {
    "no map": None,
    "one device": "cpu",
    "auto": "auto",
    "one lane a member": [f"cpu:{i}" for i in range(COUNT)],
    "by index, out of order": {4: "cpu:0", "0": "cpu:1", 1: "cpu:0", 2: "cpu:1", 3: "cpu:2"},
}
everywhere = pytest.mark.parametrize(
    ("executor", "device_map"),
    [(executor, device_map) for executor in EXECUTORS for device_map in MAPS.values()],
    ids=[f"{executor}, {name}" for executor in EXECUTORS for name in MAPS],
)


class Tower(nn.Module):
    """A member with a `ModelOutput`, a buffer and a tuple of integers in it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.layers(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden[:, None], pooler_output=hidden.tanh(), hidden_states=(hidden, hidden + 1)
        )


def towers(count: int = COUNT) -> list[nn.Module]:
    return [Tower(seed).eval() for seed in range(count)]


def oracle(members: list[nn.Module], x: Tensor, weights: list[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted mean of each field, computed by a loop in float64."""
    weights = weights or [1.0] * len(members)
    outputs = [copy.deepcopy(member).double()(x.double()) for member in members]
    fields = {name: [output[name] for output in outputs] for name in ("last_hidden_state", "pooler_output")}
    fields |= {f"hidden_{i}": [output.hidden_states[i] for output in outputs] for i in range(2)}
    return {
        name: sum(w * tensor for w, tensor in zip(weights, tensors)) / sum(weights) for name, tensors in fields.items()
    }


def check(output: Any, expected: dict[str, Tensor]) -> None:
    """Compare a `ModelOutput` with the oracle's fields."""
    assert type(output) is BaseModelOutputWithPooling
    assert isinstance(output.hidden_states, tuple)
    assert output.attentions is None
    found = {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
    found |= {f"hidden_{i}": tensor for i, tensor in enumerate(output.hidden_states)}
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-6, rtol=1e-5)


@everywhere
def test_every_executor_and_map_gives_the_float64_mean_in_the_members_type(executor: str, device_map: Any) -> None:
    members, x = towers(), torch.randn(4, 6)
    ensemble = ParallelEnsemble(copy.deepcopy(members), device_map, executor=executor)
    with torch.no_grad():
        expected = oracle(members, x)
        check(ensemble(pixel_values=x), expected)
        check(ensemble(x), expected)


@everywhere
def test_weights_belong_to_their_members_wherever_these_are(executor: str, device_map: Any) -> None:
    members, x, weights = towers(), torch.randn(4, 6), [0.5, 4.0, 0.0, 1.0, 2.5]
    ensemble = ParallelEnsemble(copy.deepcopy(members), device_map, executor=executor, weights=weights)
    with torch.no_grad():
        check(ensemble(x), oracle(members, x, weights))


@everywhere
def test_gradients_reach_each_members_weights_and_the_input(executor: str, device_map: Any) -> None:
    members, x = towers(), torch.randn(4, 6, requires_grad=True)
    ensemble = ParallelEnsemble(copy.deepcopy(members), device_map, executor=executor)
    ensemble(x).pooler_output.square().sum().backward()
    given = x.grad
    x.grad = None
    mean = sum(member(x).pooler_output for member in members) / COUNT
    mean.square().sum().backward()
    torch.testing.assert_close(given, x.grad)
    for mine, member in zip(ensemble.model_list, members):
        for ours, theirs in zip(mine.parameters(), member.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("device_map", ["cpu", ["cpu:0", "cpu:1"]], ids=["one device", "two lanes"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["copy", "pickle"])
def test_a_copy_computes_the_same_with_weights_of_its_own(
    executor: str, device_map: Any, duplicate: Callable[[ParallelEnsemble], ParallelEnsemble]
) -> None:
    ensemble, x = ParallelEnsemble(towers(2), device_map, executor=executor), torch.randn(4, 6)
    with torch.no_grad():
        before = ensemble(x).pooler_output
        other = duplicate(ensemble)
        assert torch.equal(other(x).pooler_output, before)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(ensemble(x).pooler_output, before)
        assert not torch.equal(other(x).pooler_output, before)
    assert other.placement == ensemble.placement


@pytest.mark.parametrize("executor", EXECUTORS)
def test_checkpoints_go_to_the_hosts_ensemble_and_back(executor: str) -> None:
    ours = ParallelEnsemble(towers(3), ["cpu:0", "cpu:1", "cpu:0"], executor=executor)
    theirs, x = EnsembleModule(towers(6)[3:]), torch.randn(4, 6)
    with torch.no_grad():
        assert not torch.allclose(ours(x).pooler_output, theirs(x)["pooler_output"])
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x).pooler_output, theirs(x)["pooler_output"])
        theirs = EnsembleModule(towers(6)[3:])
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x).pooler_output, theirs(x)["pooler_output"])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("one", [True, False], ids=["one ensemble", "two ensembles"])
def test_two_threads_that_call_at_once_each_get_their_own_answer(executor: str, one: bool) -> None:
    ensembles = [ParallelEnsemble(towers(3), ["cpu:0", "cpu:1", "cpu:0"], executor=executor) for _ in range(2)]
    if one:
        ensembles = [ensembles[0]] * 2
    inputs = [torch.randn(4, 6) for _ in range(2)]
    with torch.no_grad():
        expected = [oracle(towers(3), x) for x in inputs]
    wrong: list[BaseException] = []

    def call(number: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(50):
                    check(ensembles[number](inputs[number]), expected[number])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_function_gets_the_members_outputs_in_their_order(executor: str) -> None:
    members, x = towers(4), torch.randn(4, 6)
    for index, member in enumerate(members):
        ensemble = ParallelEnsemble(
            copy.deepcopy(members), ["cpu:1", "cpu:0", "cpu:1", "cpu:0"], executor=executor, reducer=itemgetter(index)
        )
        with torch.no_grad():
            torch.testing.assert_close(ensemble(x).pooler_output, member(x).pooler_output)
