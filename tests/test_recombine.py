"""An ensemble whose members are combined otherwise is the ensemble that was built so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_ensembles import IMAGES, assert_same_bits, two_towers
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble


class Counting(nn.Linear):
    """A classifier that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": [1, 0, 3]},
        {"reducer": "probability_mean"},
        {"reducer": {"name": "calibrated_mean", "pooled_temperature": 2.0}, "weights": {"a": 1, "b": 2, "c": 0}},
        {"reducer": "max"},
    ],
)
@pytest.mark.parametrize("placed", [{}, {"device_map": ["cpu:0", "cpu:1", "cpu:0"]}, {"executor": "stacked"}])
def test_it_gives_what_an_ensemble_built_so_gives(options: dict[str, Any], placed: dict[str, Any]) -> None:
    models, x = [nn.Linear(3, 4) for _ in range(3)], torch.randn(5, 3)
    ensemble = ParallelEnsemble(models, names=["a", "b", "c"], **placed)
    ensemble(x)
    ensemble.recombine(**options)
    built = ParallelEnsemble(copy.deepcopy(models), names=["a", "b", "c"], **placed, **options)
    for one in (ensemble, copy.deepcopy(ensemble)):
        assert torch.equal(one(x), built(x))
        assert (one.member_weights, one.reducer_spec) == (built.member_weights, built.reducer_spec)
        one.close()
    built.close()


def test_what_is_not_given_stays() -> None:
    models, x = [nn.Linear(3, 4) for _ in range(2)], torch.randn(5, 3)
    ensemble = ParallelEnsemble(models, weights=[1, 3])
    ensemble.recombine(reducer="log_probability_mean")
    ensemble.recombine()
    built = ParallelEnsemble(models, weights=[1, 3], reducer="log_probability_mean")
    assert torch.equal(ensemble(x), built(x))


def test_members_that_lose_their_weight_are_not_run() -> None:
    members = [Counting(), Counting()]
    ensemble = ParallelEnsemble(members, weights=[1, 1])
    ensemble.recombine(weights=[0, 1])
    ensemble(torch.randn(5, 3))
    assert [member.runs for member in members] == [0, 1]


@pytest.mark.parametrize("options", [{"weights": [1]}, {"reducer": "median"}, {"weights": [1, 1], "reducer": "teapot"}])
def test_what_is_wrong_changes_nothing(options: dict[str, Any]) -> None:
    ensemble = ParallelEnsemble([nn.Linear(3, 4), nn.Linear(3, 4)], weights=[1, 3])
    before = ensemble(x := torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"weights|teapot"):
        ensemble.recombine(**options)
    assert torch.equal(ensemble(x), before)
    assert (ensemble.member_weights, ensemble.reducer_spec) == ((1, 3), "mean")


def test_it_is_saved_as_it_is_combined_last(tmp_path: Path) -> None:
    ensemble = two_towers()
    ensemble.recombine(weights=[1, 3], reducer={"name": "mean"})
    ensemble.save_pretrained(tmp_path / "saved")
    assert_same_bits(ParallelEnsemble.from_pretrained(tmp_path / "saved"), ensemble, IMAGES)
