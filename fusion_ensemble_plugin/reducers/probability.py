"""Means of class probabilities, computed and returned as log-probabilities.

What comes out are log-probabilities, so that ``argmax``, softmax, cross-entropy and metrics downstream stay right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusion_ensemble_plugin.reducer import merge_into
from fusion_ensemble_plugin.reducers.class_scores import ClassScoreReducer


class ProbabilityMeanReducer(ClassScoreReducer):
    """The mean of the members' class probabilities, log (sum_i w_i p_i / sum_i w_i) with p_i = softmax(y_i / T).

    Also called linear opinion pool. The sum runs in log space, so that classes as improbable as exp(-1000) keep their
    order. A member that rules a class out (a logit of -inf) does not veto it.

    Args:
        class_dim: The dimension of the classes.
        temperature: T, a number above 0.
        score_keys: Output fields that hold class scores; None for ``logits``, or the tensor itself.

    Raises:
        ValueError: If an option is wrong.

    Examples:
        >>> pool = ProbabilityMeanReducer()
        >>> left, right = (pool.lift(torch.tensor(p).log(), 1.0) for p in ([0.9, 0.1], [0.5, 0.5]))
        >>> pool.lower(pool.merge(left, right), 2.0).exp()
        tensor([0.7000, 0.3000])
    """

    def lift(self, output: Tensor, weight: float) -> Tensor:
        """Return log (w p) of one member."""
        log_probabilities = self.log_probabilities(output)
        return log_probabilities if weight == 1 else merge_into(torch.add, log_probabilities, math.log(weight))

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Return log (exp left + exp right), written into ``left``."""
        return merge_into(_add_exponentials, left, right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the total weight."""
        return state - math.log(total_weight)


class LogProbabilityMeanReducer(ClassScoreReducer):
    """The normalised geometric mean of the members' class probabilities: the logarithmic opinion pool.

    The output is log softmax(sum_i w_i log p_i / sum_i w_i) with p_i = softmax(y_i / T): the log-probabilities of the
    mean logits. One member that rules a class out (a logit of -inf) vetoes it; if all classes are vetoed, the output is
    NaN.

    Args:
        class_dim: The dimension of the classes.
        temperature: T, a number above 0.
        score_keys: Output fields that hold class scores; None for ``logits``, or the tensor itself.

    Raises:
        ValueError: If an option is wrong.

    References:
        Heskes: Selecting weighting factors in logarithmic opinion pools, NIPS 1997.

    Examples:
        >>> pool = LogProbabilityMeanReducer()
        >>> left, right = (pool.lift(torch.tensor(p).log(), 1.0) for p in ([0.9, 0.1], [0.5, 0.5]))
        >>> pool.lower(pool.merge(left, right), 2.0).exp()
        tensor([0.7500, 0.2500])
    """

    def lift(self, output: Tensor, weight: float) -> Tensor:
        """Return w log p of one member."""
        log_probabilities = self.log_probabilities(output)
        return log_probabilities if weight == 1 else merge_into(torch.mul, log_probabilities, weight)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Add ``right`` into ``left``."""
        return merge_into(torch.add, left, right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the total weight and normalise."""
        return (state / total_weight).log_softmax(self.class_dim)


def _add_exponentials(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Do as ``torch.logaddexp``, but with a gradient of 0 where both are -inf; torch's own is NaN there."""
    if out is not None:
        return torch.logaddexp(left, right, out=out)
    impossible = (left == -math.inf) & (right == -math.inf)
    both = torch.logaddexp(left.masked_fill(impossible, 0.0), right.masked_fill(impossible, 0.0))
    return both.masked_fill(impossible, -math.inf)
