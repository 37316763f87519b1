"""How members' outputs become one: reducers are commutative monoids.

Because `Reducer.merge` is associative and commutative, each device folds its own members as they finish and only one
partial result a device travels; no stack of all outputs ever exists. Nothing here knows of models or devices.

Here are the protocol, the mean, and functions as reducers; `fusion_ensemble_plugin.reducers` holds the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

State = Any
"""A partial result: a tensor, or any nesting of containers and tensors, such as a list of outputs."""

WeightRule = Literal["positive", "signed", "equal"]
"""Which weights mean something to a reducer: numbers above 0; of either sign; or none, so that all must be the same.

A weight of 0 always leaves a member out, and its reducer never sees it.
"""


@runtime_checkable
class Reducer(Protocol):
    """Combines one tensor of every member into one tensor of the same shape.

    Tensors arrive in float32, float64 or complex, whatever the members compute in (half precision is raised before and
    cast back after), so that a running sum cannot overflow.

    Attributes that a reducer may have besides:

    - ``ordered = True``: states are merged in the order of the members.
    - ``weight_rule``: a `WeightRule`; "positive" if absent.
    - ``score_keys``: the reducer combines *class scores*, and only those; see `fusion_ensemble_plugin.scores`.
    - ``lift_stack(outputs, weights)``: the merged partial result of several members at once, ``(members, *shape)``.
    - ``class_dim``: the dimension of the classes in them; -1 if absent.
    """

    def lift(self, output: Tensor, weight: float) -> State:
        """Turn one member's output (any shape) into a partial result; a new tensor if `merge` writes into it."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Join two partial results; associative and commutative; may write into ``left``."""
        ...

    def lower(self, state: State, total_weight: float) -> Any:
        """Turn the partial result of all members into the output; ``total_weight`` is the sum of their weights.

        Returns:
            A tensor, or a named tuple of tensors: the ensemble then returns that named tuple of whole outputs.
        """
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

    def lift_stack(self, outputs: Tensor, weights: Sequence[float]) -> Tensor:
        """Sum the scaled outputs of several members, ``(members, *shape) -> (*shape)``."""
        if all(weight == 1 for weight in weights):
            return outputs.sum(dim=0)
        scales = outputs.new_tensor(weights).view(-1, *[1] * (outputs.dim() - 1))
        return (outputs * scales).sum(dim=0)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Add ``right`` into ``left``."""
        return merge_into(torch.add, left, right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the total weight."""
        return state / total_weight


class SumReducer(MeanReducer):
    """The weighted sum, sum_i w_i y_i: the mean without its division. Weights may be negative.

    Examples:
        >>> difference = SumReducer()
        >>> left, right = difference.lift(torch.tensor([5.0]), 1.0), difference.lift(torch.tensor([3.0]), -1.0)
        >>> difference.lower(difference.merge(left, right), 0.0)
        tensor([2.])
    """

    weight_rule: WeightRule = "signed"

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Return the sum as it is."""
        return state


class ListReducer:
    """A function of the list of all outputs, in the order of the members.

    The outputs of all members are kept until the last one is there, on the device of the result.
    """

    ordered = True
    weight_rule: WeightRule = "equal"

    def __init__(self, function: Callable[[list[Tensor]], Tensor]) -> None:
        self.function: Callable[..., Tensor] = function

    def lift(self, output: Tensor, weight: float) -> list[Tensor]:
        """Keep one output; a copy, since a compiled member may write its next output over this one."""
        return [output.clone()]

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        """Join two lists."""
        return left + right

    def lower(self, state: list[Tensor], total_weight: float) -> Tensor:
        """Call the function."""
        return self.function(state)


class CallableReducer(ListReducer):
    """A plain function of all outputs stacked, ``(members, *shape) -> (*shape)``, in the order of the members.

    Examples:
        >>> middle = CallableReducer(lambda stacked: stacked.median(dim=0).values)
        >>> states = [middle.lift(torch.tensor([x]), 1.0) for x in (1.0, 9.0, 2.0)]
        >>> middle.lower(middle.merge(middle.merge(states[0], states[1]), states[2]), 3.0)
        tensor([2.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function: Callable[..., Tensor] = function

    def lower(self, state: list[Tensor], total_weight: float) -> Tensor:
        """Stack and call the function.

        Raises:
            ValueError: If it returns another shape.
        """
        stacked = torch.stack(state)
        reduced = self.function(stacked)
        if reduced.shape != stacked.shape[1:]:
            name = getattr(self.function, "__name__", repr(self.function))
            raise ValueError(
                f"the reducer function {name!r} turned {tuple(stacked.shape)}, the first dimension being the members, "
                f"into {tuple(reduced.shape)} and not into {tuple(stacked.shape[1:])}"
            )
        return reduced


def reduce_tensors(reducer: Reducer, outputs: Sequence[Tensor], weights: Sequence[float] | None = None) -> Any:
    """Reduce tensors that are all there.

    Args:
        reducer: What combines them.
        outputs: One tensor a member, all of one shape.
        weights: One number a member, none of them 0; None for all 1.

    Examples:
        >>> reduce_tensors(MeanReducer(), [torch.tensor([1.0]), torch.tensor([4.0])], [2.0, 1.0])
        tensor([2.])
    """
    weights = [1.0] * len(outputs) if weights is None else weights
    states = (reducer.lift(output, weight) for output, weight in zip(outputs, weights))
    return reducer.lower(reduce(reducer.merge, states), sum(weights))


def merge_into(function: Callable[..., Tensor], left: Tensor, right: Tensor | float) -> Tensor:
    """Compute ``function(left, right)`` into ``left``; into a new tensor where autograd or a wider dtype needs one.

    Args:
        function: An element-wise torch function that takes ``out``.
        left: A tensor that nobody else holds.
        right: A tensor of the same shape, or a number.
    """
    recorded = torch.is_grad_enabled() and (left.requires_grad or (isinstance(right, Tensor) and right.requires_grad))
    # by torch.func.vmap, say
    transformed = any(isinstance(side, Tensor) and is_functorch_wrapped_tensor(side) for side in (left, right))
    if recorded or transformed or torch.result_type(left, right) != left.dtype:
        return function(left, right)
    return function(left, right, out=left)


def real(output: Tensor) -> Tensor:
    """Return an output that a reducer is to sort or to take the logarithm of.

    Raises:
        TypeError: If it is complex.
    """
    if output.is_complex():
        raise TypeError(f"{output.dtype} has no order; of the reducers, mean, sum and variance take complex outputs")
    return output


def stack_lift(reducer: Reducer) -> Callable[[Tensor, Sequence[float]], State] | None:
    """Return a reducer's ``lift_stack``, unless a subclass overrides ``lift`` and not it: the two would differ."""
    for cls in type(reducer).__mro__:
        if "lift_stack" in vars(cls):
            found: Callable[[Tensor, Sequence[float]], State] = getattr(reducer, "lift_stack")  # noqa: B009
            return found
        if "lift" in vars(cls):
            break
    return None


def is_ordered(reducer: Reducer) -> bool:
    """Say whether a reducer asks, by ``ordered = True``, to merge in the order of the members."""
    return bool(getattr(reducer, "ordered", False))


def weight_rule(reducer: Reducer) -> WeightRule:
    """Return which weights a reducer takes, by its ``weight_rule``."""
    rule: WeightRule = getattr(reducer, "weight_rule", "positive")
    return rule
