"""Outputs that are kept: the same to the last bit, and never those of another input."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from classification_pool import Member
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.members import Members
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.runner import forward
from fusion_ensemble_plugin.selection.batches import Budget
from fusion_ensemble_plugin.selection.outputs import _content, outputs_kept


@pytest.fixture
def ensemble() -> ParallelEnsemble:
    return ParallelEnsemble([Member(seed) for seed in range(3)])


@pytest.fixture
def keeping(ensemble: ParallelEnsemble) -> Iterator[ParallelEnsemble]:
    with outputs_kept(ensemble, Budget(2**20)), torch.no_grad():
        yield ensemble


def runs(ensemble: ParallelEnsemble) -> int:
    return sum(member.runs for member in ensemble.model_list)


def test_the_same_input_is_not_run_again_however_it_is_combined(keeping: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    for options in ({}, {"weights": [1, 0, 3]}, {"reducer": "probability_mean"}, {"weights": [0, 1, 0]}):
        keeping.recombine(**options)
        built = ParallelEnsemble(
            copy.deepcopy(list(keeping.model_list)), weights=keeping.member_weights, reducer=keeping.reducer_spec
        )
        assert torch.equal(keeping(x), built(x))
    assert runs(keeping) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": ["cpu:0", "cpu:1", "cpu:0"], "reducer": "median"},
        {"executor": "stacked", "weights": [1, 2, 3]},
        {"device_map": Placement(("cpu:0",) * 3, offloaded=(0, 2)), "offload": "disk"},
        {"autocast": torch.bfloat16},
    ],
)
def test_kept_outputs_are_reduced_to_the_same_bits_wherever_members_are(options: dict[str, Any]) -> None:
    x = torch.randn(5, 2)
    ensemble = ParallelEnsemble([Member(seed) for seed in range(3)], **options)
    with torch.no_grad():
        expected = ensemble(x)
        with outputs_kept(ensemble, Budget(2**20)):
            first, second = ensemble(x), ensemble(x)
    assert torch.equal(first, second)
    if options.get("executor") == "stacked":  # kept outputs are those of members that run one by one
        torch.testing.assert_close(first, expected)
    else:
        assert torch.equal(first, expected)
    ensemble.close()


def test_weights_of_offloaded_members_are_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = Placement(("cpu:0",) * 3, offloaded=(0, 2))
    ensemble, x = ParallelEnsemble([Member(seed) for seed in range(3)], placement, offload="disk"), torch.ones(1, 2)
    fetched: list[int] = []
    plain = Members.at_work

    def at_work(self: Members, index: int, following: int | None) -> Any:
        fetched.append(index)
        return plain(self, index, following)

    monkeypatch.setattr(Members, "at_work", at_work)
    with outputs_kept(ensemble, Budget(2**20)), torch.no_grad():
        for _ in range(3):
            ensemble(x)
    assert fetched == [0, 1, 2]
    ensemble.close()


def test_an_input_that_was_changed_in_place_is_run_and_an_equal_one_is_not(keeping: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    first = keeping(x)
    x += 1
    changed = keeping(x)
    assert not torch.equal(first, changed)
    assert torch.equal(changed, keeping(x.t().contiguous().t()))
    assert runs(keeping) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.float16)),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 1j]).conj()),
        (torch.tensor(1.0), torch.tensor([1.0])),
        (torch.tensor([True]), torch.tensor([1], dtype=torch.uint8)),
        (torch.zeros(0, 2), torch.zeros(0, 3)),
        (1, 1.0),
        (1, True),
        ("1", 1),
        ([torch.ones(1)], torch.ones(1)),
    ],
)
def test_inputs_that_differ_in_anything_are_different(one: Any, other: Any) -> None:
    assert _content(forward, ((one,), {})) not in (None, _content(forward, ((other,), {})))
    assert _content(forward, ((one,), {})) == _content(forward, ((copy.deepcopy(one),), {}))
    assert _content(forward, ((one,), {})) != _content(forward, ((), {"x": one}))


@pytest.mark.parametrize("unknown", [object(), torch.ones(1, requires_grad=True), torch.eye(2).to_sparse()])
def test_inputs_that_cannot_be_told_apart_are_not_known(unknown: Any) -> None:
    assert _content(forward, ((torch.ones(1), unknown), {})) is None


def test_an_equal_tensor_at_the_place_of_one_that_is_gone_is_run(keeping: ParallelEnsemble) -> None:
    results = [keeping(torch.full((1, 2), float(number))) for number in range(20)]
    assert len({tuple(result.flatten().tolist()) for result in results}) == 20


def test_what_is_done_to_a_result_does_not_reach_the_next_one(keeping: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    keeping.recombine(weights=[1, 0, 0])
    first = keeping(x)
    expected = first.clone()
    for _ in range(2):
        keeping(x).zero_()
    assert torch.equal(keeping(x), expected)


def test_keyword_inputs_count(keeping: ParallelEnsemble) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return x * factor

    ensemble, x = ParallelEnsemble([Scaled(), Scaled()]), torch.ones(1)
    with outputs_kept(ensemble, Budget(2**20)):
        assert [ensemble(x, factor=factor).item() for factor in (1.0, 2.0, 1.0)] == [1.0, 2.0, 1.0]


def test_copies_of_the_ensemble_share_what_is_kept(keeping: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    expected = keeping(x)
    copied = copy.deepcopy(keeping)
    assert torch.equal(copied(x), expected)
    assert runs(copied) == runs(keeping) == 3
    copied(x + 1)
    assert runs(copied) == 6  # a copy runs its own members
    assert runs(keeping) == 3
    keeping(x + 1)
    assert runs(keeping) == 3


@pytest.mark.parametrize("options", [{}, {"weights": [0, 1, 1]}])
def test_gradients_reach_inputs_and_members_as_ever(ensemble: ParallelEnsemble, options: dict[str, Any]) -> None:
    x = torch.randn(5, 2, requires_grad=True)
    ensemble.recombine(**options)
    with outputs_kept(ensemble, Budget(2**20)):
        for _ in range(2):
            ensemble(x).sum().backward()
    assert x.grad is not None
    assert runs(ensemble) == 2 * sum(1 for weight in ensemble.member_weights if weight)


def test_inference_tensors_are_inputs_like_others(keeping: ParallelEnsemble) -> None:
    with torch.inference_mode():
        x = torch.randn(5, 2)
        before = keeping(x)
        x += 1
        assert not torch.equal(keeping(x), before)
    assert torch.equal(keeping(x), keeping(x))


def test_calls_other_than_forward_are_passed_through(keeping: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    for _ in range(2):
        keeping.run_members(lambda index, member, args, kwargs: forward(index, member, args, kwargs), ((x,), {}))
    assert runs(keeping) == 6


def test_only_the_asked_fields_take_memory() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x, "hidden": x.repeat(1, 100)}

    budget, x = Budget(1000), torch.zeros(10, 2)
    ensemble = ParallelEnsemble([Two(), Two()], output_keys=["logits"])
    with outputs_kept(ensemble, budget):
        ensemble(x)
    assert budget.left == 1000 - 2 * 10 * 2 * 4


def test_members_with_gradients_of_their_own_are_not_kept_with_their_graph(ensemble: ParallelEnsemble) -> None:
    x = torch.randn(5, 2)
    with outputs_kept(ensemble, Budget(2**20)):
        for _ in range(2):
            ensemble(x).sum().backward()
    built = ParallelEnsemble(copy.deepcopy(list(ensemble.model_list)))
    built.zero_grad()
    for _ in range(2):
        built(x).sum().backward()
    ours, theirs = ([p.grad for p in each.parameters()] for each in (ensemble, built))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_afterwards_it_is_an_ensemble_like_any_other(ensemble: ParallelEnsemble) -> None:
    before = dict(vars(ensemble))
    with outputs_kept(ensemble, Budget(2**20)):
        assert isinstance(ensemble, ParallelEnsemble)
    assert type(ensemble) is ParallelEnsemble
    assert vars(ensemble) == before
