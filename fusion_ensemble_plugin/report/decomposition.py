"""Where an ensemble's score comes from: sums that add up exactly, of the members' probabilities and the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fusion_ensemble_plugin.report.metrics import BINS, brier_score, check, negative_log_likelihood, one_hot
from fusion_ensemble_plugin.report.metrics_diversity import pooled, shares


class Ambiguity(NamedTuple):
    """An ensemble's Brier score as its members' mean score less their ambiguity: ``ensemble = members - ambiguity``.

    Attributes:
        ensemble: The Brier score of the pooled probabilities.
        members: The weighted mean of the members' Brier scores.
        ambiguity: sum_i w_i |p_i - mean p|^2, how far members lie apart, at least 0.
    """

    ensemble: float
    members: float
    ambiguity: float


def ambiguity(members: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> Ambiguity:
    """Split an ensemble's Brier score.

    Args:
        members: The members' probabilities, (members, samples, classes).
        labels: The true classes, (samples,).
        weights: One number >= 0 a member; None for equal ones.

    References:
        Krogh and Vedelsby: Neural network ensembles, cross validation, and active learning, NIPS 1994, eq. 6.

    Examples:
        >>> ambiguity(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0]))
        Ambiguity(ensemble=0.5, members=1.0, ambiguity=0.5)
    """
    share, mean = shares(members, weights), pooled(members, weights)
    apart = (members.double() - mean).square().sum(dim=-1).mean(dim=-1)
    return Ambiguity(
        brier_score(mean, labels).item(),
        (share @ brier_score(members, labels)).item(),
        (share @ apart).item(),
    )


def jensen_gap(members: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> float:
    """Return by how many nats the pooled probabilities' log likelihood is better than the members' mean one; never < 0.

    References:
        Abe et al.: Deep ensembles work, but are they necessary?, arXiv:2202.06985, section 3.
    """
    mean_of_losses = shares(members, weights) @ negative_log_likelihood(members, labels)
    return (mean_of_losses - negative_log_likelihood(pooled(members, weights), labels)).item()


class BrierParts(NamedTuple):
    """A Brier score as ``reliability - resolution + uncertainty + within_variance - within_covariance``.

    Attributes:
        reliability: How far the probabilities of a bin are from the frequencies of what happened; 0 is best.
        resolution: How far the bins' frequencies are from the overall one; large is good.
        uncertainty: The score of always forecasting the overall frequencies; a property of the data.
        within_variance: Spread of the probabilities inside their bins.
        within_covariance: Twice how that spread goes along with what happened.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_variance: float
    within_covariance: float

    @property
    def total(self) -> float:
        """The Brier score."""
        good = self.resolution + self.within_covariance
        return self.reliability + self.uncertainty + self.within_variance - good


def brier_parts(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> BrierParts:
    """Split the Brier score of one model, class by class, and sum over the classes.

    Args:
        probabilities: (samples, classes).
        labels: The true classes, (samples,).
        bins: Bins of equal width, for each class's probability. The two parts from within the bins make the sum exact
            whatever their number; without them it would hold for one bin a distinct probability only.

    References:
        Murphy: A new vector partition of the probability score, J. Appl. Meteorology 12, 1973; within-bin parts:
        Stephenson, Coelho and Jolliffe: Two extra components in the Brier score decomposition, Weather and Forecasting
        23, 2008.
    """
    exact = check(probabilities, labels)
    happened = one_hot(labels, exact)
    samples, classes = exact.shape
    index = (exact * bins).floor().long().clamp_max(bins - 1)

    def by_bin(values: Tensor) -> Tensor:
        zeros = torch.zeros(bins, classes, dtype=exact.dtype, device=exact.device)
        return zeros.scatter_add(0, index, values)

    count = by_bin(torch.ones_like(exact))
    filled = count.clamp_min(1)
    forecast, frequency = by_bin(exact) / filled, by_bin(happened) / filled
    overall = happened.mean(dim=0)
    spread, surprise = exact - forecast.gather(0, index), happened - frequency.gather(0, index)
    return BrierParts(
        (count * (forecast - frequency).square()).sum().item() / samples,
        (count * (frequency - overall).square()).sum().item() / samples,
        (overall * (1 - overall)).sum().item(),
        spread.square().sum().item() / samples,
        2 * (spread * surprise).sum().item() / samples,
    )
