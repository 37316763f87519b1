"""``method=ensemble/greedy_ensemble`` and ``method=ensemble/learned_weights``: the members' weights."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from fusion_bench.mixins.serialization import auto_register_config

from fusion_ensemble_plugin.algorithms import plain
from fusion_ensemble_plugin.selection.method import Choice, Score, SelectingEnsembleAlgorithm
from fusion_ensemble_plugin.selection.search import Trials, Weights, as_weights, greedy, learned, one_of


class _WeightsAlgorithm(SelectingEnsembleAlgorithm):
    """What the searches for weights have in common."""

    weights: Any

    def _choose(self, score: Score, names: Sequence[str]) -> Choice:
        trials: Trials[Weights] = Trials(lambda weights: score(weights=weights))
        members = len(names)
        equal = trials(as_weights([1] * members))
        weights, options = self._search(trials, names)
        alone = [trials(one_of(members, member)) for member in range(members)]
        return Choice({"weights": weights}, equal, trials(weights), alone, options)

    @abstractmethod
    def _search(self, trials: Trials[Weights], names: Sequence[str]) -> tuple[Weights, dict[str, Any]]:
        """Return the weights that score best, and what else the reader should know."""

    def _check_search(self) -> list[str]:
        problems = [] if self.weights is None else ["weights: they are what is chosen; leave them null"]
        if self._weight_rule() == "equal":
            problems.append(f"reducer={plain(self.reducer)!r} takes no weights, so there is nothing to choose")
        return problems


@auto_register_config
class GreedyEnsembleAlgorithm(_WeightsAlgorithm):
    """Weights by greedy selection of members with replacement: see `fusion_ensemble_plugin.selection.search.greedy`.

    Args:
        size: How many members are taken at most, repetitions counted, in each bag.
        sorted_start: How many of them are the best members, taken once each.
        bags: How many searches, each among some members drawn at random; 1 for one among all.
        bag_share: The share of the members that each of several bags draws.
        seed: Of the draws.
        **kwargs: The options of `SelectingEnsembleAlgorithm`.

    References:
        Caruana et al.: Ensemble selection from libraries of models, ICML 2004.
    """

    size: int
    sorted_start: int
    bags: int
    bag_share: float
    seed: int

    def __init__(
        self, size: int = 10, sorted_start: int = 1, bags: int = 1, bag_share: float = 0.5, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)

    def _search(self, trials: Trials[Weights], names: Sequence[str]) -> tuple[Weights, dict[str, Any]]:
        found = greedy(trials, len(names), self.size, self.sorted_start, self.bags, self.bag_share, self.seed)
        return found.weights, {"counts": dict(zip(names, found.counts))}

    def _at_most(self, members: int) -> int:
        drawn = members if self.bags == 1 else max(1, math.ceil(self.bag_share * members))
        return members + 2 + self.bags * self.size * drawn

    def _check_search(self) -> list[str]:
        least = {"size": 1, "sorted_start": 0, "bags": 1, "seed": 0}
        problems = [problem for name, value in least.items() if (problem := _at_least(self, name, value))]
        share = self.bag_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            problems.append(f"bag_share={share!r}: a number above 0, and at most 1, is needed")
        return super()._check_search() + problems


@auto_register_config
class LearnedWeightsAlgorithm(_WeightsAlgorithm):
    """Weights by a search without derivatives: see `fusion_ensemble_plugin.selection.search.learned`.

    Args:
        evaluations: How many weights are tried, besides equal ones and members alone.
        **kwargs: The options of `SelectingEnsembleAlgorithm`.
    """

    evaluations: int

    def __init__(self, evaluations: int = 60, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _search(self, trials: Trials[Weights], names: Sequence[str]) -> tuple[Weights, dict[str, Any]]:
        return learned(trials, len(names), self.evaluations), {}

    def _at_most(self, members: int) -> int:
        return self.evaluations + members + 1

    def _check_search(self) -> list[str]:
        problem = _at_least(self, "evaluations", 1)
        return super()._check_search() + ([problem] if problem else [])


def _at_least(method: Any, name: str, least: int) -> str:
    """Return what is wrong with a whole number, or nothing."""
    value = getattr(method, name)
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return "" if good else f"{name}={value!r}: a whole number >= {least} is needed"
