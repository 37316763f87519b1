"""The output contract: what the members return, folded into one output of the same type.

Floating and complex tensors and Python floats are reduced. ``None``, integer and bool tensors, strings and other values
pass through if all members agree.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from fusion_ensemble_plugin.fields import kept_fields
from fusion_ensemble_plugin.leaf import Leaf, Several
from fusion_ensemble_plugin.reducer import MeanReducer, Reducer
from fusion_ensemble_plugin.scores import leaf_reducers
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
        self._leaves: list[Leaf] = []
        self.names: list[str] = []
        self.total_weight = 0.0

    def add(self, index: int, name: str, output: Any, weight: float = 1.0) -> None:
        """Fold in one member's output.

        Raises:
            ValueError: If the output does not fit those before it, naming field and members, or if the reducer combines
                class scores and the output holds none.
        """
        one, values = self._opened(output, [name], weight)
        one._leaves = [leaf.lift(value, index, weight) for leaf, value in zip(one._leaves, values)]
        self.merge(one)

    def add_stack(self, indices: Sequence[int], names: Sequence[str], output: Any, weights: Sequence[float]) -> None:
        """Fold in the outputs of several members, given as one whose tensors are stacked, ``(members, *shape)``.

        Raises:
            ValueError: As `add` does.
        """
        one, values = self._opened(output, names, sum(weights), stacked=True)
        one._leaves = [leaf.lift_stack(value, indices, weights) for leaf, value in zip(one._leaves, values)]
        self.merge(one)

    def _opened(
        self, output: Any, names: Sequence[str], weight: float, stacked: bool = False
    ) -> tuple[Fold, list[Any]]:
        """Return a fold with empty leaves for an output, and its values."""
        try:
            values, structure = flatten(kept_fields(output, self._output_keys))
        except ValueError as error:
            raise ValueError(f"member {names[0]!r}: {error}") from None
        one = Fold(self._reducer, self._output_keys)
        one._structure, one.names, one.total_weight = structure, list(names), weight
        reducers = leaf_reducers(self._reducer, structure, values, stacked)
        one._leaves = [Leaf(structure, place, reducer) for place, reducer in enumerate(reducers)]
        return one, values

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

    def packed(self) -> Any:
        """Return all that another process needs to make this fold anew: a tree of tensors and picklable values."""
        if self._structure is None:
            return None
        empty = unflatten(self._structure, range(len(self._leaves)))
        rows = [
            (leaf.reducer is self._reducer, leaf.value, leaf.states, leaf.shape, leaf.dtype) for leaf in self._leaves
        ]
        return {"like": empty, "leaves": rows, "names": self.names, "weight": self.total_weight}

    def unpack(self, packed: Any) -> Fold:
        """Take in what `packed` returned of a fold with an equal reducer; this one must be empty. Returns this fold."""
        self._structure = flatten(packed["like"])[1]
        self._leaves = [
            Leaf(self._structure, place, self._reducer if main else MeanReducer(), value, states, shape, dtype)
            for place, (main, value, states, shape, dtype) in enumerate(packed["leaves"])
        ]
        self.names, self.total_weight = packed["names"], packed["weight"]
        return self

    def move(self, device: torch.device) -> None:
        """Bring the partial results to another device."""
        for leaf in self._leaves:
            leaf.move(device)

    def lower(self) -> Any:
        """Return the output of all members folded in, in the type that they return.

        If the reducer returns a named tuple of tensors, so does this: a named tuple of whole outputs.
        """
        if self._structure is None:
            raise ValueError("no member has been folded in")
        values = [leaf.lower(self.total_weight) for leaf in self._leaves]
        several = next((value for value in values if isinstance(value, Several)), None)
        if several is None:
            return unflatten(self._structure, values)
        rows = [value.parts if isinstance(value, Several) else [value] * len(several.parts) for value in values]
        return several.kind(*(unflatten(self._structure, column) for column in zip(*rows)))
