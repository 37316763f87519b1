"""Which outputs are class scores, so that a reducer of class scores combines those and no others.

A reducer with an attribute ``score_keys`` combines class scores. They are in the output fields of those names, or, if
it is None, in the field ``logits`` if the output has one, else in the output if that is a single tensor. All other
floating outputs get the mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from fusion_ensemble_plugin.reducer import MeanReducer, Reducer
from fusion_ensemble_plugin.tree import Structure

AUTOMATIC = "logits"
"""The field that holds class scores if the reducer names none."""


def takes_scores(reducer: Reducer) -> bool:
    """Say whether a reducer combines class scores only."""
    return hasattr(reducer, "score_keys")


def leaf_reducers(
    reducer: Reducer, structure: Structure, values: Sequence[Any], stacked: bool = False
) -> list[Reducer]:
    """Choose the reducer of each leaf of an output.

    Args:
        reducer: What the user chose.
        structure: The output's structure.
        values: Its leaves.
        stacked: Whether its tensors are those of several members, ``(members, *shape)``.

    Raises:
        ValueError: If the reducer combines class scores and the output holds none.

    Examples:
        >>> import torch
        >>> from fusion_ensemble_plugin.reducers.probability import ProbabilityMeanReducer
        >>> from fusion_ensemble_plugin.tree import flatten
        >>> leaves, structure = flatten({"logits": torch.zeros(1, 2), "hidden": torch.zeros(1, 8)})
        >>> [type(chosen).__name__ for chosen in leaf_reducers(ProbabilityMeanReducer(), structure, leaves)]
        ['ProbabilityMeanReducer', 'MeanReducer']
    """
    if not takes_scores(reducer):
        return [reducer] * len(values)
    keys = _keys(reducer, structure)
    chosen: list[Reducer] = []
    for key, child in zip(structure.keys, structure.children):
        count = sum(1 for _ in child.paths())
        chosen += [reducer if key in keys else MeanReducer()] * count
    chosen = chosen or [reducer]
    for path, value, its_reducer in zip(structure.paths(), values, chosen):
        if its_reducer is reducer:
            _check(path, value[0] if stacked and isinstance(value, Tensor) else value, reducer)
    return chosen


def _keys(reducer: Any, structure: Structure) -> Sequence[Hashable]:
    """Return the output's fields that hold class scores; nothing if it is a single tensor and no field is asked for."""
    wanted = reducer.score_keys
    if wanted is None and structure.kind is None:
        return ()
    keys = (AUTOMATIC,) if wanted is None else tuple(wanted)
    missing = [key for key in keys if key not in structure.keys]
    if missing:
        there = f"has the fields {list(structure.keys)}" if structure.kind else "is a single value without fields"
        raise ValueError(
            f"{type(reducer).__name__} combines class scores and looks for them in {', '.join(map(repr, missing))}, "
            f"but the output {there}. Name the fields by the reducer's score_keys. Features, such as a CLIP tower's, "
            "are no class scores."
        )
    return keys


def _check(path: str, value: Any, reducer: Any) -> None:
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{type(reducer).__name__} combines floating class scores, but {path} is {kind}")
    dim, shape = getattr(reducer, "class_dim", -1), tuple(value.shape)
    if not -value.dim() <= dim < value.dim():
        raise ValueError(f"{type(reducer).__name__}: class_dim={dim} is not a dimension of {path} of shape {shape}")
    if value.shape[dim] < 2:
        raise ValueError(
            f"{type(reducer).__name__} needs at least two classes, but {path} of shape {shape} has {value.shape[dim]} "
            f"along class_dim={dim}"
        )
