"""How much of a number is chance: bootstrap confidence intervals, paired by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

CONFIDENCE = 0.95
RESAMPLES = 2000
_AT_ONCE = 2_000_000
"""Numbers drawn at a time, which bounds the memory: 16 MB."""


class Interval(NamedTuple):
    """A number with its confidence interval.

    Attributes:
        value: The number, on the data as they are.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the number may be 0: a gain that is no more than noise."""
        return self.low <= 0 <= self.high


def mean_interval(
    *tasks: Sequence[float] | Tensor, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean over tasks of the mean over samples, with its bootstrap interval (percentiles).

    Each task's samples are drawn anew on their own, so that tasks keep their sizes and their equal say. An interval of
    values that are all equal has no width: the bootstrap knows of no other value.

    Args:
        *tasks: One number a sample, such as right (1) or wrong (0), for each task.
        confidence: The share of such intervals that would hold the true number, between 0 and 1.
        resamples: How often samples are drawn anew.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: If there is no task, or a task without samples.

    References:
        Efron and Tibshirani: An introduction to the bootstrap, 1993, chapter 13; by `scipy.stats.bootstrap`.

    Examples:
        >>> mean_interval([1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
        Interval(value=0.8125, low=0.625, high=1.0)
    """
    groups = [np.asarray(task, dtype=np.float64).ravel() for task in tasks]
    if not groups or any(group.size == 0 for group in groups):
        raise ValueError("an interval needs at least one task, and one sample of each")
    value = float(_mean_of_means(*groups))
    constant = all(bool((group == group[0]).all()) for group in groups)
    if constant:
        return Interval(value, value, value)
    doubled = [np.repeat(group, 2) if group.size == 1 else group for group in groups]  # scipy wants two; no difference
    ends = stats.bootstrap(
        doubled,
        _mean_of_means,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // max(group.size for group in doubled)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(ends.low), float(ends.high))


class Gain(NamedTuple):
    """What an ensemble has over its best member.

    Attributes:
        best: Index of the member with the highest mean; of equal ones, the first.
        gain: The ensemble's mean less that member's.
    """

    best: int
    gain: Interval


def gain_over_best(
    ensemble: Sequence[Tensor], members: Sequence[Tensor], confidence: float = CONFIDENCE, seed: int = 0
) -> Gain:
    """Compare an ensemble with its best member on the same samples.

    The pairing is by sample: what is drawn anew are the samples' differences, so that samples that are hard for both
    don't widen the interval. The best member is chosen on these same samples and then held fixed, which flatters it and
    makes the gain look smaller than it is rather than larger.

    Args:
        ensemble: For each task one number a sample, such as right (1) or wrong (0), (samples,).
        members: For each task the same of every member, (members, samples).
        confidence: As in `mean_interval`.
        seed: As in `mean_interval`.
    """
    means = np.mean([task.double().mean(dim=-1).numpy(force=True) for task in members], axis=0)
    best = int(means.argmax())
    differences = [ours.double() - theirs[best].double() for ours, theirs in zip(ensemble, members, strict=True)]
    return Gain(best, mean_interval(*[each.cpu() for each in differences], confidence=confidence, seed=seed))


def _mean_of_means(*groups: NDArray[Any], axis: int = -1) -> Any:
    return sum(group.mean(axis=axis) for group in groups) / len(groups)
