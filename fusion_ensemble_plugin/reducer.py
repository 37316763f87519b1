"""How members' outputs become one: reducers are commutative monoids.

Because `Reducer.merge` is associative and commutative, each device folds its own members as they finish and only one
partial result a device travels; no stack of all outputs ever exists. Nothing here knows of models or devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

State = Any
"""A partial result: a tensor, or any nesting of containers and tensors, such as a list of outputs."""


@runtime_checkable
class Reducer(Protocol):
    """Combines one tensor of every member into one tensor of the same shape.

    Tensors arrive in float32, float64 or complex, whatever the members compute in (half precision is raised before and
    cast back after), so that a running sum cannot overflow.
    """

    def lift(self, output: Tensor, weight: float) -> State:
        """Turn one member's output (any shape) into a partial result; a new tensor if `merge` writes into it."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Join two partial results; associative and commutative; may write into ``left``."""
        ...

    def lower(self, state: State, total_weight: float) -> Tensor:
        """Turn the partial result of all members into the output; ``total_weight`` is the sum of their weights."""
        ...


class MeanReducer:
    """The weighted mean, sum_i w_i y_i / sum_i w_i, as a running sum.

    Examples:
        >>> mean = MeanReducer()
        >>> left, right = mean.lift(torch.tensor([1.0, 2.0]), 1.0), mean.lift(torch.tensor([3.0, 6.0]), 3.0)
        >>> mean.lower(mean.merge(left, right), 4.0)
        tensor([2.5000, 5.0000])
    """

    def lift(self, output: Tensor, weight: float) -> Tensor:
        """Scale one output; always a new tensor, since `merge` adds into it."""
        return output.clone() if weight == 1 else output * weight

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Add ``right`` into ``left``."""
        return left.add_(right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the total weight."""
        return state / total_weight


class CallableReducer:
    """A plain function of all outputs stacked, ``(members, *shape) -> (*shape)``.

    The outputs of all members are kept until the last one is there, and the function sees them in the order of the
    members.

    Examples:
        >>> middle = CallableReducer(lambda stacked: stacked.median(dim=0).values)
        >>> states = [middle.lift(torch.tensor([x]), 1.0) for x in (1.0, 9.0, 2.0)]
        >>> middle.lower(middle.merge(middle.merge(states[0], states[1]), states[2]), 3.0)
        tensor([2.])
    """

    ordered = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def lift(self, output: Tensor, weight: float) -> list[Tensor]:
        """Keep one output; a copy, since a compiled member may write its next output over this one."""
        return [output.clone()]

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        """Join two lists."""
        return left + right

    def lower(self, state: list[Tensor], total_weight: float) -> Tensor:
        """Stack and call the function."""
        return self.function(torch.stack(state))


def is_ordered(reducer: Reducer) -> bool:
    """Say whether a reducer asks, by ``ordered = True``, to merge in the order of the members."""
    return bool(getattr(reducer, "ordered", False))
