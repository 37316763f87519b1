"""Reducers that sort the members' outputs element by element. They hold all N outputs until the last one is there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fusion_ensemble_plugin.reducer import WeightRule, real


class _MiddleReducer(ABC):
    """The mean of those values that are left in the middle when the outputs are sorted element by element.

    A NaN of any member gives NaN.
    """

    weight_rule: WeightRule = "equal"

    def lift(self, output: Tensor, weight: float) -> list[Tensor]:
        """Keep one output; a copy, since a compiled member may write its next output over this one.

        Raises:
            TypeError: If it is complex, which has no order.
        """
        return [real(output).clone()]

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        """Join two lists."""
        return left + right

    def lower(self, state: list[Tensor], total_weight: float) -> Tensor:
        """Sort, cut off both ends, and average what is left."""
        ordered = torch.stack(state).sort(dim=0).values  # NaN comes last
        cut = self.cut(len(state))
        middle = ordered[cut : len(state) - cut].mean(dim=0)
        return torch.where(ordered[-1].isnan(), ordered[-1], middle)

    @abstractmethod
    def cut(self, members: int) -> int:
        """Return how many of the sorted values are cut off at either end."""


class MedianReducer(_MiddleReducer):
    """The element-wise median; between an even number of members, the mean of the two in the middle.

    Examples:
        >>> median = MedianReducer()
        >>> states = [median.lift(torch.tensor([x]), 1.0) for x in (1.0, 90.0, 2.0, 4.0)]
        >>> median.lower(sum(states, []), 4.0)
        tensor([3.])
    """

    def cut(self, members: int) -> int:
        """All but the one or two in the middle."""
        return (members - 1) // 2


class TrimmedMeanReducer(_MiddleReducer):
    """The element-wise mean without the largest and the smallest values.

    Args:
        fraction: The share of the members that is left out at either end, in [0, 0.5); rounded down to whole members:
            0.25 leaves out one at either end of 4 to 7 members.

    Raises:
        ValueError: If the fraction is outside.

    Examples:
        >>> trimmed = TrimmedMeanReducer(fraction=0.25)
        >>> states = [trimmed.lift(torch.tensor([x]), 1.0) for x in (1.0, 90.0, 2.0, 4.0)]
        >>> trimmed.lower(sum(states, []), 4.0)
        tensor([3.])
    """

    def __init__(self, fraction: float = 0.25) -> None:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 0.5:
            raise ValueError(f"fraction={fraction!r}: the share trimmed at either end must be in [0, 0.5)")
        self.fraction = float(fraction)

    def cut(self, members: int) -> int:
        """The fraction of the members, rounded down; never so many that none is left."""
        whole = math.floor(self.fraction * members + 1e-9)  # 0.29 * 100 is 28.999999999999996
        return min(whole, (members - 1) // 2)
