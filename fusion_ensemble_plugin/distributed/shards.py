"""The rows of several ranks in one batch, and what the members make of them, kept apart by rank.

Each rank's rows are folded by themselves, as they would be without the other ranks: a reducer never sees another rank's
rows. Shards whose tensors don't fit together (sequences of other lengths), and outputs that don't have one row for each
row of the input (a mean loss), are computed shard by shard instead: nothing is padded that a member would see.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.distributed.packing import TensorSpec
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.tree import flatten, unflatten


@dataclass
class Batch:
    """Inputs that the members run on at once.

    Attributes:
        inputs: Positional and keyword inputs.
        rows: For each rank whose rows they are, by its place in the team, how many.
    """

    inputs: Any
    rows: dict[int, int]


class NotByRows(Exception):
    """A member's output can't be divided between the ranks whose rows went in."""


def join(shards: dict[int, Any], separately: bool = False) -> list[Batch]:
    """Join the shards that fit together.

    Args:
        shards: Place in the team to that rank's inputs, on one device.
        separately: Join none.
    """
    alike: dict[bytes, list[int]] = {}
    for place, shard in shards.items():
        key = None if separately else _key(shard)
        alike.setdefault(b"%d" % place if key is None else b"k" + key, []).append(place)
    return [_joined({place: shards[place] for place in places}) for places in alike.values()]


class ShardFold(Fold):
    """Several folds, one for each rank whose rows are in the batch.

    Args:
        new_fold: Makes one.
        rows: Place in the team to number of rows.

    Attributes:
        folds: Place in the team to fold.
    """

    def __init__(self, new_fold: Callable[[], Fold], rows: dict[int, int]) -> None:
        self.rows = rows
        self.folds = {place: new_fold() for place in rows}

    def add(self, index: int, name: str, output: Any, weight: float = 1.0) -> None:
        """Fold in one member's output, each rank's rows into its fold.

        Raises:
            NotByRows: If it can't be divided by rows.
        """
        for place, part in self._divided(output, 0).items():
            self.folds[place].add(index, name, part, weight)

    def add_stack(self, indices: Sequence[int], names: Sequence[str], output: Any, weights: Sequence[float]) -> None:
        """Fold in the outputs of several members, ``(members, rows, *shape)``.

        Raises:
            NotByRows: If they can't be divided by rows.
        """
        for place, part in self._divided(output, 1).items():
            self.folds[place].add_stack(indices, names, part, weights)

    def merge(self, other: Fold) -> None:
        """Join another one, of the same ranks, into this one."""
        if not isinstance(other, ShardFold):
            raise TypeError(f"a {type(other).__name__} is not divided between ranks")
        for place, fold in self.folds.items():
            fold.merge(other.folds[place])

    def move(self, device: torch.device) -> None:
        """Bring the partial results to another device."""
        for fold in self.folds.values():
            fold.move(device)

    def lower(self) -> dict[int, Fold]:
        """Return the folds as they are: other ranks' members are still missing in them."""
        return self.folds

    def _divided(self, output: Any, dim: int) -> dict[int, Any]:
        if len(self.rows) == 1:
            return dict.fromkeys(self.rows, output)
        leaves, structure = flatten(output)
        total, start, parts = sum(self.rows.values()), 0, {}
        if not all(_has_rows(leaf, total, dim) for leaf in leaves):
            raise NotByRows
        for place, count in self.rows.items():
            cut = [leaf.narrow(dim, start, count) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            parts[place] = unflatten(structure, cut)
            start += count
        return parts


def _has_rows(leaf: Any, total: int, dim: int) -> bool:
    """Say whether a leaf has one entry a row, or is the same for all; numbers may count or average rows."""
    if isinstance(leaf, Tensor):
        return leaf.dim() > dim and leaf.shape[dim] == total
    return not isinstance(leaf, (int, float, complex)) or isinstance(leaf, bool)


def _key(shard: Any) -> bytes | None:
    """Return what shards must have in common to be joined; None if this one can't be."""
    leaves, structure = flatten(shard)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(tensor.dim() == 0 or tensor.shape[0] != tensors[0].shape[0] for tensor in tensors):
        return None
    kinds = [TensorSpec(leaf[:0]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pickle.dumps(unflatten(structure, kinds))


def _joined(shards: dict[int, Any]) -> Batch:
    if len(shards) == 1:
        (place,) = shards
        return Batch(shards[place], {place: 1})
    columns, structures = zip(*(flatten(shard) for shard in shards.values()))
    rows = {
        place: next(leaf.shape[0] for leaf in column if isinstance(leaf, Tensor))
        for place, column in zip(shards, columns)
    }
    leaves = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in zip(*columns)]
    return Batch(unflatten(structures[0], leaves), rows)
