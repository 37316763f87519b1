"""Trees of tensors as bytes: a picklable description, and one buffer that holds all tensors."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.tree import flatten, unflatten

ALIGNMENT = 16  # bytes: the largest element is a complex128


class TensorSpec:
    """What stands in a description for a tensor; no dataclass: those are containers, which trees would open.

    Attributes:
        dtype: The tensor's dtype.
        shape: Its shape.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)

    @property
    def nbytes(self) -> int:
        """The tensor's bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def room(self) -> int:
        """The bytes that it takes in a buffer."""
        return aligned(self.nbytes)


def aligned(count: int) -> int:
    """Round bytes up to the alignment of a buffer's tensors.

    Examples:
        >>> aligned(17), aligned(32)
        (32, 32)
    """
    return -(-count // ALIGNMENT) * ALIGNMENT


def describe(tree: Any, name: str) -> tuple[bytes, list[Tensor]]:
    """Take a tree apart into its description and its tensors.

    Args:
        tree: Any nesting of containers; see `fusion_ensemble_plugin.tree`.
        name: What to call it in an error.

    Raises:
        TypeError: If it holds something that can't be sent to another process, naming it.
    """
    leaves, structure = flatten(tree)
    tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
    described = [TensorSpec(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for path, leaf in zip(structure.paths(name), leaves):
        if isinstance(leaf, Tensor) and (leaf.layout != torch.strided or leaf.is_quantized):
            raise TypeError(f"{path} is a {leaf.layout} tensor, which can't be sent to another rank")
    try:
        return pickle.dumps(unflatten(structure, described)), tensors
    except Exception as error:
        wrong = [path for path, leaf in zip(structure.paths(name), described) if not _picklable(leaf)]
        raise TypeError(f"{', '.join(wrong) or name} can't be sent to another rank: {error}") from error


def restore(description: bytes, buffer: Tensor) -> Any:
    """Put a tree together from its description and the buffer with its tensors; they share the buffer's memory."""
    leaves, structure = flatten(pickle.loads(description))
    offset = 0
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, TensorSpec):
            flat = buffer[offset : offset + leaf.nbytes].view(leaf.dtype)
            leaves[place] = flat.view(leaf.shape)
            offset += leaf.room
    return unflatten(structure, leaves)


def size_of(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of a buffer that holds these tensors."""
    return sum(TensorSpec(tensor).room for tensor in tensors)


def fill(buffer: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write tensors into a buffer, ``(bytes,)``, one after another."""
    offset = 0
    for tensor in tensors:
        spec = TensorSpec(tensor)
        buffer[offset : offset + spec.nbytes].view(spec.dtype).view(spec.shape).copy_(tensor)
        offset += spec.room


def _picklable(leaf: Any) -> bool:
    try:
        pickle.dumps(leaf)
    except Exception:
        return False
    return True
