"""Members' weights: by order or by name, checked before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.weights import resolve_weights

NAMES = ["mnist", "svhn", "dtd"]
weights = st.lists(st.just(0.0) | st.floats(1e-15, 1e6), min_size=3, max_size=3).filter(any)


class Constant(nn.Module):
    """Returns one number and counts its calls."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((1,), self.value, dtype=torch.float64)


def test_no_weights_are_weights_of_one() -> None:
    assert resolve_weights(None, NAMES) == (1.0, 1.0, 1.0)


@given(drawn=weights)
def test_each_way_to_write_weights_means_the_same(drawn: list[float]) -> None:
    mapping = dict(zip(NAMES, drawn))
    ways: list[Any] = [
        drawn,
        tuple(drawn),
        torch.tensor(drawn, dtype=torch.float64),
        mapping,
        dict(reversed(mapping.items())),
        dict(enumerate(drawn)),
        {str(i): weight for i, weight in enumerate(drawn)},
        OmegaConf.create(drawn),
        OmegaConf.create(mapping),
    ]
    assert {resolve_weights(way, NAMES) for way in ways} == {tuple(drawn)}


def test_a_name_that_looks_like_an_index_is_a_name() -> None:
    assert resolve_weights({"1": 5, "0": 3}, ["1", "0"]) == (5.0, 3.0)


@pytest.mark.parametrize(
    ("given_weights", "problems"),
    [
        ([1, 2], ["2 weights for 3 members"]),
        ([1, 2, 3, 4], ["4 weights for 3 members"]),
        ({"mnist": 1, "svnh": 2}, ["no member 'svnh'", "no weight for 'svhn'", "no weight for 'dtd'"]),
        ({"mnist": 1, 0: 1, "svhn": 1, 2: 1}, ["member 'mnist' twice"]),
        ({0: 1, 1: 1, 3: 1}, ["no member 3", "no weight for 'dtd'"]),
        ({0: 1, 1: 1, -1: 1}, ["no member -1", "no weight for 'dtd'"]),
        ([0, 0, 0], ["they are all 0"]),
        ([1, -2, 3], ["'svhn' has weight -2", "negative weights are allowed only in a sum"]),
        ([1, float("nan"), float("inf")], ["'svhn' has weight nan", "'dtd' has weight inf", "not a finite number"]),
        ([1, "2", None], ["'svhn' has weight '2'", "'dtd' has weight None"]),
        ([1, True, 1], ["'svhn' has weight True"]),
        ([1e-50, 0, 1e-48], ["the largest is 1e-48", "multiply all weights by one number", "between 1e-20 and 1e+20"]),
        ([1, 1, 1e30], ["the largest is 1e+30"]),
        ("abc", ["a list, or a mapping from member to number, is needed"]),
        (3, ["a list, or a mapping from member to number, is needed"]),
    ],
)
def test_every_problem_is_listed_in_one_error(given_weights: Any, problems: list[str]) -> None:
    with pytest.raises(ValueError, match="weights=") as caught:
        resolve_weights(given_weights, NAMES)
    assert [problem for problem in problems if problem not in str(caught.value)] == []
    assert "one number >= 0 for each of 'mnist', 'svhn', 'dtd'" in str(caught.value)


def test_a_sum_takes_negative_weights_and_a_vote_only_leaves_members_out() -> None:
    assert resolve_weights([1, -1, 0], NAMES, "signed") == (1.0, -1.0, 0.0)
    assert resolve_weights([2, 0, 2], NAMES, "equal") == (2.0, 0.0, 2.0)
    with pytest.raises(ValueError, match="the reducer takes no weights"):
        resolve_weights([2, 1, 2], NAMES, "equal")


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1", "cpu:0"]])
def test_the_ensemble_is_the_weighted_mean_and_members_of_weight_0_are_not_run(device_map: Any) -> None:
    members = [Constant(1.0), Constant(5.0), Constant(9.0)]
    ensemble = ParallelEnsemble(members, device_map, names=NAMES, weights={"dtd": 3, "mnist": 1, "svhn": 0})
    assert ensemble(torch.ones(1)).item() == (1 * 1 + 3 * 9) / 4
    ensemble.close()
    assert [member.calls for member in members] == [1, 0, 1]
    assert ensemble.member_weights == (1.0, 0.0, 3.0)


def test_very_different_weights_are_fine_as_long_as_the_largest_is_a_number_in_float32() -> None:
    members = [Constant(1.0), Constant(5.0), Constant(9.0)]
    assert ParallelEnsemble(members, weights=[1e-19, 1e-300, 3e-19])(torch.ones(1)).item() == pytest.approx(7.0)


def test_wrong_weights_are_told_when_the_ensemble_is_made() -> None:
    with pytest.raises(ValueError, match="no weight for 'svhn'"):
        ParallelEnsemble([Constant(1.0), Constant(2.0)], names=NAMES[:2], weights={"mnist": 1})
