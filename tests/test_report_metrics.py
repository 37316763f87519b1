"""The report's metrics: equal to independent computations in float64, and the identities between them hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import accuracy as torchmetrics_accuracy
from torchmetrics.functional.classification import multiclass_calibration_error

from fusion_ensemble_plugin.report.decomposition import ambiguity, brier_parts, jensen_gap
from fusion_ensemble_plugin.report.metrics import (
    accuracy,
    brier_score,
    calibration_error,
    correct,
    negative_log_likelihood,
    reliability,
)
from fusion_ensemble_plugin.report.metrics_diversity import (
    disagreement,
    mutual_information,
    oracle_accuracy,
    pooled,
    predictive_entropy,
    shares,
)

Array = NDArray[Any]


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[float]]:
    """Draw members' probabilities, some of them certain, with labels and weights."""
    members, samples, classes = draw(st.integers(1, 5)), draw(st.integers(1, 30)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1.0, 5.0, 1000.0]))  # from equal probabilities to certainty
    logits = scale * torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=generator)
    weights = draw(st.lists(st.floats(0.01, 10), min_size=members, max_size=members))
    return logits.softmax(-1), labels, weights


def some_ensemble() -> tuple[Tensor, Tensor]:
    """Return four members' probabilities on 300 samples of five classes, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (300,), generator=generator)
    logits = 2 * torch.randn(4, 300, 5, generator=generator, dtype=torch.float64)
    logits[:, torch.arange(300), labels] += torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    return logits.softmax(-1), labels


def numpy_ece(p: Array, labels: Array, bins: int) -> float:
    """Compute the expected calibration error bin by bin."""
    confidence, right = p.max(-1), p.argmax(-1) == labels
    edges, error = np.linspace(0, 1, bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


ORACLES: dict[str, tuple[Callable[..., Tensor], Callable[[Array, Array], float]]] = {
    "accuracy": (accuracy, lambda p, y: float((p.argmax(-1) == y).mean())),
    "nll": (negative_log_likelihood, lambda p, y: float(-np.log(p[np.arange(len(y)), y]).mean())),
    "brier": (brier_score, lambda p, y: float(((p - np.eye(p.shape[-1])[y]) ** 2).sum(-1).mean())),
    "ece": (calibration_error, lambda p, y: numpy_ece(p, y, 15)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_metric_of_all_members_at_once_is_numpys_of_each(name: str) -> None:
    ours, oracle = ORACLES[name]
    members, labels = some_ensemble()
    expected = [oracle(member.numpy(), labels.numpy()) for member in members]
    assert ours(members, labels).dtype == torch.float64
    np.testing.assert_allclose(ours(members, labels).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(ours(members[0].float(), labels).item(), expected[0], rtol=1e-5)


def test_accuracy_and_calibration_error_are_those_of_torchmetrics() -> None:
    members, labels = some_ensemble()
    for p in members:
        theirs = torchmetrics_accuracy(p, labels, task="multiclass", num_classes=5)
        assert accuracy(p, labels).item() == pytest.approx(theirs.item(), abs=1e-7)
        for bins in (1, 10, 15):  # they bin in float32
            error = multiclass_calibration_error(p, labels, num_classes=5, n_bins=bins, norm="l1")
            assert calibration_error(p, labels, bins).item() == pytest.approx(error.item(), abs=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    logits, labels = torch.randn(50, 7, dtype=torch.float64), torch.randint(7, (50,))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(negative_log_likelihood(logits.softmax(-1), labels), expected)


def test_an_impossible_label_costs_a_finite_loss() -> None:
    loss = negative_log_likelihood(torch.tensor([[0.0, 1.0]]), torch.tensor([0])).item()
    assert loss == pytest.approx(-math.log(torch.finfo(torch.float64).tiny))


def test_entropy_information_disagreement_and_oracle_are_numpys() -> None:
    members, labels = some_ensemble()
    p, y, weights = members.numpy(), labels.numpy(), [1.0, 2.0, 0.0, 5.0]
    share = np.array(weights) / 8
    mean = (share[:, None, None] * p).sum(0)
    entropy = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(predictive_entropy(members), entropy, rtol=1e-12)
    np.testing.assert_allclose(pooled(members, weights), mean, rtol=1e-12)
    information = -(mean * np.log(mean)).sum(-1) - (share[:, None] * entropy).sum(0)
    np.testing.assert_allclose(mutual_information(members, weights), information, atol=1e-12)
    predicted = p.argmax(-1)
    expected = [[(left != right).mean() for left in predicted] for right in predicted]
    np.testing.assert_allclose(disagreement(members), expected, rtol=1e-12)
    assert oracle_accuracy(members, labels).item() == pytest.approx((predicted == y).any(0).mean())


def test_a_reliability_diagrams_bins_hold_every_sample_once() -> None:
    members, labels = some_ensemble()
    found = reliability(members[0], labels, 10)
    assert found.samples.sum() == 300
    confidence = members[0].max(-1).values
    inside = (confidence > 0.4) & (confidence <= 0.5)
    assert found.samples[4] == inside.sum()
    torch.testing.assert_close(found.confidence[4], confidence[inside].mean())
    torch.testing.assert_close(found.accuracy[4], correct(members[0], labels)[inside].double().mean())


@settings(max_examples=60, deadline=None)
@given(ensembles())
def test_mutual_information_lies_between_0_and_the_entropy_of_the_weights(
    drawn: tuple[Tensor, Tensor, list[float]],
) -> None:
    members, _, weights = drawn
    information = mutual_information(members, weights)
    assert information.min() >= 0
    assert information.max() <= predictive_entropy(shares(members, weights)) + 1e-12


@settings(max_examples=60, deadline=None)
@given(ensembles())
def test_an_ensembles_brier_score_is_its_members_less_their_ambiguity(
    drawn: tuple[Tensor, Tensor, list[float]],
) -> None:
    members, labels, weights = drawn
    parts = ambiguity(members, labels, weights)
    assert parts.ensemble == pytest.approx(parts.members - parts.ambiguity, abs=1e-12)
    assert parts.ensemble == pytest.approx(brier_score(pooled(members, weights), labels).item())
    assert parts.ambiguity >= 0


@settings(max_examples=60, deadline=None)
@given(ensembles(), st.integers(1, 20))
def test_the_parts_of_a_brier_score_add_up_to_it_for_any_number_of_bins(
    drawn: tuple[Tensor, Tensor, list[float]], bins: int
) -> None:
    members, labels, _ = drawn
    parts = brier_parts(members[0], labels, bins)
    assert parts.total == pytest.approx(brier_score(members[0], labels).item(), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance) >= 0


def test_forecasting_the_overall_frequencies_is_reliable_and_without_resolution() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    parts = brier_parts(torch.tensor([[0.75, 0.25]]).expand(4, 2), labels)
    assert (parts.reliability, parts.resolution) == (0, 0)
    assert parts.uncertainty == pytest.approx(2 * 0.75 * 0.25)


@settings(max_examples=60, deadline=None)
@given(ensembles())
def test_pooling_is_never_worse_than_the_members_mean_by_jensens_inequality(
    drawn: tuple[Tensor, Tensor, list[float]],
) -> None:
    members, labels, weights = drawn
    assert jensen_gap(members, labels, weights) >= -1e-12


@settings(max_examples=30, deadline=None)
@given(ensembles(), st.integers(1, 4))
def test_copies_of_one_model_tell_nothing_about_each_other(
    drawn: tuple[Tensor, Tensor, list[float]], copies: int
) -> None:
    members, labels, _ = drawn
    same = members[:1].expand(copies, -1, -1)
    assert mutual_information(same).max() <= 1e-12
    assert disagreement(same).max() == 0
    assert oracle_accuracy(same, labels) == accuracy(members[0], labels)
    assert ambiguity(same, labels).ambiguity <= 1e-12


@pytest.mark.parametrize(
    ("probabilities", "labels", "told"),
    [
        (torch.ones(3, 2) / 2, torch.zeros(4, dtype=torch.long), r"\(3, 2\) and labels \(4,\)"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), "is needed"),
        (torch.ones(1, 2) / 2, torch.tensor([2]), "there are 2 classes"),
        (torch.ones(1, 2) / 2, torch.tensor([-1]), "labels from -1"),
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "are these logits"),
        (torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), "are these logits"),
    ],
)
def test_what_are_no_probabilities_of_these_labels_is_refused(probabilities: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        accuracy(probabilities, labels)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_are_no_weights_of_the_members_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="for each of 2 members"):
        pooled(torch.ones(2, 1, 2) / 2, weights)
