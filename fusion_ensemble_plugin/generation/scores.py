"""The members' next-token scores, combined into the ensemble's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducer import MeanReducer, Reducer, State, is_ordered, reduce_tensors, weight_rule
from fusion_ensemble_plugin.weights import resolve_weights

ReducerSpec = str | Reducer | Callable[..., Any] | Mapping[str, Any]


def decoding_reducer(chosen: ReducerSpec | None, ensembles: Reducer) -> Reducer:
    """Return the reducer that combines the members' scores at each step.

    Args:
        chosen: What the caller of ``generate`` asked for, or None.
        ensembles: The ensemble's own reducer. It is used if it is not the plain mean of outputs, in whose place
            decoding takes the mean of probabilities.

    Raises:
        ValueError: If a name is unknown.
    """
    if chosen is not None:
        return make_reducer(chosen)
    return make_reducer("probability_mean") if type(ensembles) is MeanReducer else ensembles


def check_reducer(reducer: Reducer, weights: Mapping[str, float], device: torch.device) -> None:
    """Try a reducer on scores of two classes, one for each member that has a weight, by name.

    Raises:
        ValueError: If it doesn't take these weights, or what it makes of scores is not scores.
    """
    numbers = resolve_weights(weights, list(weights), weight_rule(reducer))
    scores = [torch.zeros(1, 1, 2, device=device) for _ in numbers]
    reduced = reduce_tensors(reducer, scores, numbers)
    if not isinstance(reduced, Tensor) or reduced.shape != scores[0].shape:
        raise ValueError(
            f"generate: {type(reducer).__name__} does not turn scores into scores of the same shape; pass "
            "reducer='probability_mean' or another reducer of class scores"
        )


class MembersLevel:
    """Class scores by another reducer, lifted to the level of the members' own scores.

    Scores that differ by a constant are one distribution, and combined scores are mostly log-probabilities, where a
    model returns logits. Some logits processors are not blind to the constant (a repetition penalty multiplies or
    divides, by the sign), so it is put back: the best score becomes the mean of the members' best ones,

        s - max(s) + sum_i w_i max(z_i) / sum_i w_i

    with s the combined scores and z_i those of member i. N copies of a model then have the model's own scores.

    Args:
        reducer: Combines scores of shape (batch, positions, classes).

    Examples:
        >>> level = MembersLevel(MeanReducer())
        >>> one, two = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 0.0])
        >>> level.lower(level.merge(level.lift(one, 1.0), level.lift(two, 1.0)), 2.0)
        tensor([2.5000, 3.0000])
    """

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self.ordered = is_ordered(reducer)

    def lift(self, output: Tensor, weight: float) -> State:
        """Lift the scores, and note the best one."""
        return self.reducer.lift(output, weight), output.amax(-1, keepdim=True) * weight

    def merge(self, left: State, right: State) -> State:
        """Merge the scores and add up the best ones."""
        return self.reducer.merge(left[0], right[0]), left[1] + right[1]

    def lower(self, state: State, total_weight: float) -> Tensor:
        """Lower the scores and shift them."""
        scores: Tensor = self.reducer.lower(state[0], total_weight)
        best: Tensor = state[1] / (total_weight or 1.0)  # weights of a difference of members may sum to 0
        return scores + (best - scores.amax(-1, keepdim=True))
