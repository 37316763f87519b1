"""What each method makes of its members' outputs, in a line: the oracles of the variants' tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

ORACLES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "simple_ensemble": lambda y: y.mean(0),
    "weighted_ensemble": lambda y: y.mean(0),
    "max_model_predictor": lambda y: y.amax(0),
    "median_ensemble": lambda y: y.quantile(0.5, dim=0),
    "trimmed_mean_ensemble": lambda y: (y.sum(0) - y.amax(0) - y.amin(0)) / (len(y) - 2),
    "probability_ensemble": lambda y: y.softmax(-1).mean(0).log(),
    "log_opinion_pool": lambda y: y.mean(0).log_softmax(-1),
    "majority_vote": lambda y: nn.functional.one_hot(y.argmax(-1), y.shape[-1]).double().mean(0),
}
"""What each method makes of the outputs of four or five members, ``(members, batch, classes)``; of a vote, the
frequencies, in which no tie is broken."""
