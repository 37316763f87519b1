"""One field of the members' outputs: partial results to reduce, or a value on which all members must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.reducer import Reducer, State, is_ordered, stack_lift
from fusion_ensemble_plugin.transfer import move
from fusion_ensemble_plugin.tree import Structure


@dataclasses.dataclass
class Several:
    """What a reducer made of one field if it returns a named tuple: the tuple's type and its parts."""

    kind: Any
    parts: list[Any]


@dataclasses.dataclass
class Leaf:
    """One field, as far as it is folded.

    Attributes:
        structure: The output's structure.
        place: Which of its leaves this is.
        reducer: What reduces this field.
        value: The value on which all agree, if it is not reduced.
        states: Else the partial results, by the index of the first member in each.
        shape: And the shape of each member's tensor.
        dtype: And their dtype; None for Python floats.
    """

    structure: Structure
    place: int
    reducer: Reducer
    value: Any = None
    states: dict[int, State] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None

    @property
    def path(self) -> str:
        """The field as one would write it in Python; found when an error needs it, not for each output."""
        return list(self.structure.paths())[self.place]

    def lift(self, value: Any, index: int, weight: float) -> Leaf:
        """Take in one member's value; returns this leaf."""
        if isinstance(value, float):
            number = torch.tensor(value, dtype=torch.float64, device="cpu")
            self.states, self.shape = {index: self.reducer.lift(number, weight)}, ()
        elif _reducible(value):
            self.shape, self.dtype = tuple(value.shape), value.dtype
            self.states = {index: self._raised(lambda tensor: self.reducer.lift(tensor, weight), value)}
        else:
            self.value = value
        return self

    def lift_stack(self, value: Any, indices: Sequence[int], weights: Sequence[float]) -> Leaf:
        """Take in the values of several members; tensors are stacked, ``(members, *shape)``. Returns this leaf.

        Raises:
            ValueError: If the members disagree on a value that is not reduced.
        """
        at_once = stack_lift(self.reducer)
        if at_once is not None and _reducible(value):
            self.shape, self.dtype = tuple(value.shape[1:]), value.dtype
            self.states = {indices[0]: self._raised(lambda tensor: at_once(tensor, weights), value)}
            return self
        values = value if isinstance(value, Tensor) else [value] * len(indices)
        each = [
            Leaf(self.structure, self.place, self.reducer).lift(one, index, weight)
            for one, index, weight in zip(values, indices, weights)
        ]
        for other in each[1:]:
            each[0].merge(other, "stacked members")
        return each[0]

    def merge(self, other: Leaf, who: str) -> None:
        """Join another leaf of the same field into this one.

        Raises:
            ValueError: If the two don't fit together, naming the field and the members, ``who``.
        """
        if self.shape is None and other.shape is None:
            if not _equal(self.value, other.value):
                raise ValueError(f"{who} disagree on {self.path}, which can't be averaged: {self} and {other}")
            return
        if self._kind != other._kind:
            raise ValueError(f"{who} return different outputs: {self.path} is {self} in one and {other} in the other")
        if self.shape != other.shape:
            raise ValueError(f"{who} return different shapes for {self.path}: {self.shape} and {other.shape}")
        if self.dtype is not None and other.dtype is not None:
            self.dtype = torch.promote_types(self.dtype, other.dtype)
        self.states.update(other.states)
        if not is_ordered(self.reducer):
            self._join()

    def move(self, device: torch.device) -> None:
        """Bring the partial results to another device; those of Python floats stay on the CPU."""
        if self._kind is float:
            return
        self.states = {index: move(state, device) for index, state in self.states.items()}
        self.value = move(self.value, device)

    def lower(self, total_weight: float) -> Any:
        """Return what all members' values make, in their type; `Several` if the reducer returns a named tuple."""
        if self.shape is None:
            return self.value
        self._join()
        (state,) = self.states.values()
        output = self.reducer.lower(state, total_weight)
        if isinstance(output, Tensor):
            return output.item() if self.dtype is None else output.to(self.dtype)
        if not (isinstance(output, tuple) and hasattr(output, "_fields")):
            raise TypeError(
                f"{type(self.reducer).__name__}.lower returned a {type(output).__name__} for {self.path}; a tensor or "
                "a named tuple of tensors is needed"
            )
        first, *others = output
        if self.dtype is None:
            return Several(type(output), [first.item(), *(other.item() for other in others)])
        # a spread such as the variance may leave the range of half precision: it stays as it is
        return Several(type(output), [first.to(self.dtype), *others])

    @property
    def _kind(self) -> type:
        """What the members return: `Tensor` or `float`, which are reduced, or any other `object`."""
        if self.shape is None:
            return object
        return float if self.dtype is None else Tensor

    def _join(self) -> None:
        first, *rest = sorted(self.states)
        state = self.states.pop(first)
        for index in rest:
            state = self.reducer.merge(state, self.states.pop(index))
        self.states = {first: state}

    def _raised(self, lift: Callable[[Tensor], State], value: Tensor) -> State:
        """Lift a tensor in the dtype in which it is accumulated."""
        try:
            return lift(value.to(accumulation_dtype(value.dtype)))
        except Exception as error:
            add_note(error, f"{type(self.reducer).__name__} was given {self.path} of shape {self.shape}")
            raise

    def __str__(self) -> str:
        if self._kind is float:
            return "a Python float"
        if self._kind is Tensor:
            return f"a floating tensor of shape {self.shape}"
        if isinstance(self.value, Tensor):
            return f"a tensor of {self.value.dtype} and shape {tuple(self.value.shape)}"
        return repr(self.value)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which outputs are summed: at least float32.

    Examples:
        >>> accumulation_dtype(torch.bfloat16), accumulation_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return torch.float32 if dtype.itemsize < 4 else dtype


def _reducible(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    same = left == right
    return bool(same.all()) if hasattr(same, "all") else bool(same)  # NumPy compares element by element
