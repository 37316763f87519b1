"""The output contract: what the members return, folded into one output of the same type.

Floating and complex tensors and Python floats are reduced. ``None``, integer and bool tensors, strings and other values
pass through if all members agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.fields import kept_fields
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.reducer import Reducer, State, is_ordered
from fusion_ensemble_plugin.scores import leaf_reducers
from fusion_ensemble_plugin.transfer import move
from fusion_ensemble_plugin.tree import Structure, flatten, unflatten


class Fold:
    """The outputs of some members, reduced as they come in.

    One fold lives on one device. Folds of several devices are brought together with `move` and `merge`.

    Attributes:
        names: The members folded so far, in the order they came.
        total_weight: The sum of their weights.
    """

    def __init__(self, reducer: Reducer, output_keys: Sequence[Hashable] | None = None) -> None:
        self._reducer = reducer
        self._output_keys = output_keys
        self._structure: Structure | None = None
        self._leaves: list[_Leaf] = []
        self.names: list[str] = []
        self.total_weight = 0.0

    def add(self, index: int, name: str, output: Any, weight: float = 1.0) -> None:
        """Fold in one member's output.

        Raises:
            ValueError: If the output does not fit those before it, naming field and members, or if the reducer combines
                class scores and the output holds none.
        """
        values, structure = flatten(kept_fields(output, self._output_keys))
        reducers = leaf_reducers(self._reducer, structure, values)
        one = Fold(self._reducer, self._output_keys)
        one._structure, one.names, one.total_weight = structure, [name], weight
        one._leaves = [
            _lift(path, value, index, weight, reducer)
            for path, value, reducer in zip(structure.paths(), values, reducers)
        ]
        self.merge(one)

    def merge(self, other: Fold) -> None:
        """Join another fold on the same device into this one; the other is used up.

        Raises:
            ValueError: If the two don't fit together, naming field and members.
        """
        if self._structure is None:
            self._structure, self._leaves = other._structure, other._leaves
        elif other._structure is not None:
            who = f"members {self.names[0]!r} and {other.names[0]!r}"
            if self._structure != other._structure:
                raise ValueError(f"{who} return different outputs: {self._structure.difference(other._structure)}")
            for mine, theirs in zip(self._leaves, other._leaves):
                mine.merge(theirs, who)
        self.names += other.names
        self.total_weight += other.total_weight

    def move(self, device: torch.device) -> None:
        """Bring the partial results to another device."""
        for leaf in self._leaves:
            leaf.states = {index: move(state, device) for index, state in leaf.states.items()}
            leaf.value = move(leaf.value, device)

    def lower(self) -> Any:
        """Return the output of all members folded in, in the type that they return.

        If the reducer returns a named tuple of tensors, so does this: a named tuple of whole outputs.
        """
        if self._structure is None:
            raise ValueError("no member has been folded in")
        values = [leaf.lower(self.total_weight) for leaf in self._leaves]
        several = next((value for value in values if isinstance(value, _Several)), None)
        if several is None:
            return unflatten(self._structure, values)
        rows = [value.parts if isinstance(value, _Several) else [value] * len(several.parts) for value in values]
        return several.kind(*(unflatten(self._structure, column) for column in zip(*rows)))


@dataclasses.dataclass
class _Several:
    """What a reducer made of one field if it returns a named tuple: the tuple's type and its parts."""

    kind: Any
    parts: list[Any]


@dataclasses.dataclass
class _Leaf:
    """One field of the output: partial results by member index, or a value on which all members must agree."""

    path: str
    reducer: Reducer
    value: Any = None
    states: dict[int, State] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None

    def merge(self, other: _Leaf, who: str) -> None:
        if (self.shape is None) != (other.shape is None):
            raise ValueError(
                f"{who} return different outputs: {self.path} is {_named(self)} in one and {_named(other)} in the other"
            )
        if self.shape is None or other.shape is None:
            if not _equal(self.value, other.value):
                raise ValueError(
                    f"{who} disagree on {self.path}, which can't be averaged: {_named(self)} and {_named(other)}"
                )
            return
        if self.shape != other.shape:
            raise ValueError(f"{who} return different shapes for {self.path}: {self.shape} and {other.shape}")
        if self.dtype is not None and other.dtype is not None:
            self.dtype = torch.promote_types(self.dtype, other.dtype)
        self.states.update(other.states)
        if not is_ordered(self.reducer):
            self._join()

    def _join(self) -> None:
        first, *rest = sorted(self.states)
        state = self.states.pop(first)
        for index in rest:
            state = self.reducer.merge(state, self.states.pop(index))
        self.states = {first: state}

    def lower(self, total_weight: float) -> Any:
        if self.shape is None:
            return self.value
        self._join()
        (state,) = self.states.values()
        output = self.reducer.lower(state, total_weight)
        if isinstance(output, Tensor):
            return output.to(self.dtype) if self.dtype is not None else output.item()
        first, *others = (
            output  # a spread such as the variance may leave the range of half precision; it stays as it is
        )
        if self.dtype is None:
            return _Several(type(output), [first.item(), *(other.item() for other in others)])
        return _Several(type(output), [first.to(self.dtype), *others])


def _lift(path: str, value: Any, index: int, weight: float, reducer: Reducer) -> _Leaf:
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        raised = value.to(accumulation_dtype(value.dtype))
        shape, dtype = tuple(value.shape), value.dtype
    elif isinstance(value, float):
        raised, shape, dtype = torch.tensor(value, dtype=torch.float64), (), None
    else:
        return _Leaf(path, reducer, value)
    try:
        return _Leaf(path, reducer, None, {index: reducer.lift(raised, weight)}, shape, dtype)
    except Exception as error:
        add_note(error, f"{type(reducer).__name__} was given {path} of shape {shape}")
        raise


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which outputs are summed: at least float32.

    Examples:
        >>> accumulation_dtype(torch.bfloat16), accumulation_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return torch.float32 if dtype.itemsize < 4 else dtype


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and bool(left == right)


def _named(leaf: _Leaf) -> str:
    if leaf.shape is not None:
        return f"a floating tensor of shape {leaf.shape}"
    if isinstance(leaf.value, Tensor):
        return f"a tensor of {leaf.value.dtype} and shape {tuple(leaf.value.shape)}"
    return repr(leaf.value)
