"""Searches for the members' weights, and for a temperature, that score best; pure functions of a score.

A score is a function of what is tried, to a number of which more is better. It may be costly: nothing is tried twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

TEMPERATURE_EVALUATIONS = 30
"""How many temperatures are tried at most, besides 1."""

Weights = tuple[float, ...]
Counts = tuple[int, ...]
Tried = TypeVar("Tried", bound=Hashable)


class Trials(Generic[Tried]):
    """A score that remembers what was tried.

    Args:
        score: What is remembered.

    Attributes:
        scores: What was tried, in that order, to its score.
    """

    def __init__(self, score: Callable[[Tried], float]) -> None:
        self._score = score
        self.scores: dict[Tried, float] = {}

    def __call__(self, value: Tried) -> float:
        """Return the score."""
        if value not in self.scores:
            self.scores[value] = self._score(value)
        return self.scores[value]

    @property
    def best(self) -> Tried:
        """What scored best; of equal ones what was tried first."""
        return max(self.scores, key=self.scores.__getitem__)


class Greedy(NamedTuple):
    """What a greedy search found.

    Attributes:
        counts: How often each member was taken.
        bags: The same for each bag; one without bagging.
    """

    counts: Counts
    bags: tuple[Counts, ...]

    @property
    def weights(self) -> Weights:
        """The counts as weights: multiples of 1/size that sum to 1."""
        return as_weights(self.counts)


def greedy(
    score: Callable[[Weights], float],
    members: int,
    size: int = 10,
    start: int = 1,
    bags: int = 1,
    bag_share: float = 0.5,
    seed: int = 0,
) -> Greedy:
    """Choose members one by one, with replacement: each time the one with which the ensemble scores best.

    The best ``start`` members come first (sorted initialisation). Of all ensembles on the way, from the best member
    alone on, the best is kept, and of equal ones the smallest (best prefix). With several bags the search is repeated,
    each time among members drawn at random, and the bags' counts are added up; if that scores worse than the best
    member alone, it is that member.

    Args:
        score: Of weights.
        members: How many there are.
        size: How many members a bag's ensemble has at most, repetitions counted.
        start: How many of them are the best members alone.
        bags: How many searches; 1 is one among all members.
        bag_share: The share of the members that each of several bags draws.
        seed: Of the draws.

    References:
        Caruana et al.: Ensemble selection from libraries of models, ICML 2004, sections 2.1 to 2.3.

    Examples:
        >>> greedy(lambda weights: -abs(weights[0] - 0.3) - weights[2], members=3).weights
        (0.3, 0.7, 0.0)
    """
    tried = Trials(score)
    alone = {member: tried(one_of(members, member)) for member in range(members)}
    ranked = sorted(alone, key=lambda member: -alone[member])  # stable: of equal ones the first
    rng = np.random.default_rng(seed)
    found = tuple(_best_prefix(tried, members, drawn, size, start) for drawn in _bags(ranked, bags, bag_share, rng))
    total = tuple(map(sum, zip(*found)))
    if tried(as_weights(total)) < alone[ranked[0]]:
        total = tuple(int(member == ranked[0]) for member in range(members))
    return Greedy(total, found)


def learned(score: Callable[[Weights], float], members: int, evaluations: int = 100) -> Weights:
    """Search all weights for those that score best, without derivatives, so that any score will do.

    Equal weights and members alone are tried first, and the best of all that was tried is returned: it is never worse
    than these. The simplex of Nelder and Mead starts half as large as that of all weights.

    Args:
        score: Of weights, which sum to 1.
        members: How many there are.
        evaluations: How many weights are tried, besides members alone and equal weights.

    Returns:
        One weight a member, at least 0; they sum to 1.

    References:
        Nelder and Mead: A simplex method for function minimization, Computer Journal 7, 1965; Gao and Han:
        Implementing the Nelder-Mead simplex algorithm with adaptive parameters, Comput. Optim. Appl. 51, 2012; by
        `scipy.optimize.minimize`.

    Examples:
        >>> learned(lambda weights: -(weights[0] - 0.25) ** 2, members=2)
        (0.25, 0.75)
    """
    tried = Trials(score)
    for weights in [(1 / members,) * members, *(one_of(members, member) for member in range(members))]:
        tried(weights)
    if members > 1:
        corners = 0.5 * np.eye(members) + 0.5 / members
        options = {"initial_simplex": corners[:, :-1], "maxfev": evaluations, "adaptive": True, "xatol": 1e-3}
        optimize.minimize(
            lambda free: -tried(_on_simplex(free)), corners[0, :-1], method="Nelder-Mead", options=options
        )
    return tried.best


def temperature(score: Callable[[float], float], low: float = 0.05, high: float = 20.0) -> float:
    """Search the logarithm of a temperature for the one that scores best; never worse than 1, which is tried first.

    References:
        Brent: Algorithms for minimization without derivatives, 1973, chapter 5; by `scipy.optimize.minimize_scalar`.

    Examples:
        >>> round(temperature(lambda t: -(math.log(t) - math.log(2)) ** 2), 2)
        2.0
    """
    tried = Trials(score)
    tried(1.0)
    options = {"maxiter": TEMPERATURE_EVALUATIONS, "xatol": 1e-3}
    optimize.minimize_scalar(
        lambda log: -tried(round(math.exp(log), 6)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options=options,
    )
    return tried.best


def as_weights(counts: Sequence[int]) -> Weights:
    """Return counts as weights that sum to 1; counts of the same shares give the very same floats.

    Examples:
        >>> as_weights([2, 0, 2])
        (0.5, 0.0, 0.5)
    """
    return tuple(float(Fraction(count, sum(counts))) for count in counts)


def one_of(members: int, member: int) -> Weights:
    """Return the weights of one member alone."""
    return tuple(float(member == other) for other in range(members))


def _bags(ranked: Sequence[int], bags: int, share: float, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield the members of each bag, the best first."""
    if bags == 1:
        yield list(ranked)
        return
    for _ in range(bags):
        drawn = rng.choice(len(ranked), max(1, math.ceil(share * len(ranked))), replace=False)
        yield [ranked[place] for place in sorted(drawn)]


def _best_prefix(score: Trials[Weights], members: int, drawn: Sequence[int], size: int, start: int) -> Counts:
    """Grow one ensemble and return the best on the way, of equal ones the smallest."""
    counts = (0,) * members
    way: list[Counts] = []
    for step in range(size):
        candidates = drawn[:start][step : step + 1] or drawn
        options = [_one_more(counts, member) for member in candidates]
        counts = max(options, key=lambda option: score(as_weights(option)))
        way.append(counts)
    return max(way, key=lambda option: score(as_weights(option)))


def _one_more(counts: Counts, member: int) -> Counts:
    return tuple(count + (index == member) for index, count in enumerate(counts))


def _on_simplex(free: NDArray[np.float64]) -> Weights:
    """Complete all weights but the last to weights that are at least 0 and sum to 1."""
    clipped = np.append(free, 1 - free.sum()).clip(min=0)  # at least one is above 0, as they sum to 1
    rounded = [round(float(weight), 6) for weight in clipped / clipped.sum()]
    return tuple(rounded)
