"""How far the members are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusion_ensemble_plugin.reducer import merge_into


class MeanVariance(NamedTuple):
    """What an ensemble with the reducer ``variance`` returns: two outputs of the members' own type.

    Attributes:
        mean: What the reducer ``mean`` gives.
        variance: Of each element, the weighted mean of the squared distances from that mean (sum_i w_i |y_i - m|^2 /
            sum_i w_i, not N - 1), in at least float32 whatever the members compute in.
    """

    mean: Tensor
    variance: Tensor


class _State(NamedTuple):
    mean: Tensor
    squares: Tensor  # sum_i w_i |y_i - mean|^2
    weight: float


class VarianceReducer:
    """Mean and population variance together, in one pass and without cancellation.

    References:
        Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, COMPSTAT 1982,
        the merge of two of Welford's running states.

    Examples:
        >>> spread = VarianceReducer()
        >>> left, right = spread.lift(torch.tensor([1.0]), 1.0), spread.lift(torch.tensor([5.0]), 1.0)
        >>> spread.lower(spread.merge(left, right), 2.0)
        MeanVariance(mean=tensor([3.]), variance=tensor([4.]))
    """

    def lift(self, output: Tensor, weight: float) -> _State:
        """Start with one output, at distance 0 from itself."""
        return _State(output.clone(), output.new_zeros(output.shape, dtype=output.real.dtype), weight)

    def merge(self, left: _State, right: _State) -> _State:
        """Join two running states; the left one's tensors are written into."""
        weight = left.weight + right.weight
        apart = right.mean - left.mean
        between = (apart * apart.conj()).real * (left.weight * right.weight / weight)
        squares = _add(_add(left.squares, right.squares), between)
        return _State(_add(left.mean, apart * (right.weight / weight)), squares, weight)

    def lower(self, state: _State, total_weight: float) -> MeanVariance:
        """Divide by the total weight."""
        return MeanVariance(state.mean, state.squares / total_weight)


def _add(left: Tensor, right: Tensor) -> Tensor:
    return merge_into(torch.add, left, right)
