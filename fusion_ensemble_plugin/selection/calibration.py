"""``method=ensemble/calibrated_ensemble``: one temperature for the pooled probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_ensemble_plugin.algorithms import plain
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducers.calibrated import CalibratedMeanReducer
from fusion_ensemble_plugin.selection.method import Choice, Score, SelectingEnsembleAlgorithm
from fusion_ensemble_plugin.selection.search import TEMPERATURE_EVALUATIONS, Trials, temperature


class CalibratedEnsembleAlgorithm(SelectingEnsembleAlgorithm):
    """The mean of the members' class probabilities with one temperature, fitted after pooling.

    Accuracy stays what it is; the loss, and how honest the probabilities are, get better. All options are those of
    `SelectingEnsembleAlgorithm`.

    References:
        Rahaman and Thiery: Uncertainty quantification and deep ensembles, arXiv:2007.08792.
    """

    default_metric = "loss"

    def _reducer(self) -> Any:
        return plain(self.reducer) or "calibrated_mean"

    def _choose(self, score: Score, names: Sequence[str]) -> Choice:
        trials: Trials[float] = Trials(lambda value: score(reducer=self._reducer_with(value)))
        found = temperature(trials)
        return Choice(
            {"reducer": self._reducer_with(found)}, trials(1.0), trials(found), options={"pooled_temperature": found}
        )

    def _at_most(self, members: int) -> int:
        return TEMPERATURE_EVALUATIONS + 1

    def _check_search(self) -> list[str]:
        try:
            calibrated = isinstance(make_reducer(self._reducer()), CalibratedMeanReducer)
        except (ValueError, TypeError):
            return []  # told already
        return [] if calibrated else [f"reducer={self._reducer()!r}: only calibrated_mean has a pooled temperature"]

    def _reducer_with(self, pooled_temperature: float) -> dict[str, Any]:
        spec = self._reducer()
        options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
        return {**options, "pooled_temperature": pooled_temperature}
