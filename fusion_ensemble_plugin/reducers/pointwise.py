"""The largest and the smallest value of each element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fusion_ensemble_plugin.reducer import WeightRule, merge_into, real


class MaxReducer:
    """The element-wise maximum, max_i y_i, as FusionBench's ``MaxModelPredictor`` has it. NaN wins over all.

    Examples:
        >>> largest = MaxReducer()
        >>> left, right = largest.lift(torch.tensor([1.0, 5.0]), 1.0), largest.lift(torch.tensor([2.0, 3.0]), 1.0)
        >>> largest.lower(largest.merge(left, right), 2.0)
        tensor([2., 5.])
    """

    weight_rule: WeightRule = "equal"
    function: Callable[..., Tensor] = staticmethod(torch.maximum)

    def lift(self, output: Tensor, weight: float) -> Tensor:
        """Copy one output, since `merge` writes into it.

        Raises:
            TypeError: If it is complex, which has no order.
        """
        return real(output).clone()

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Compare element by element, into ``left``."""
        return merge_into(self.function, left, right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Return the state as it is."""
        return state


class MinReducer(MaxReducer):
    """The element-wise minimum, min_i y_i. NaN wins over all."""

    function: Callable[..., Tensor] = staticmethod(torch.minimum)
