"""Moving trees of tensors between devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fusion_ensemble_plugin.tree import flatten, unflatten

T = TypeVar("T")


def torch_device(place: str) -> torch.device:
    """Return the torch device of a placement's device: every CPU lane is torch's one ``cpu``.

    Examples:
        >>> torch_device("cpu:3"), torch_device("cuda:1")
        (device(type='cpu'), device(type='cuda', index=1))
    """
    device = torch.device(place)
    return torch.device("cpu") if device.type == "cpu" else device


def move(tree: T, device: torch.device, name: str = "output") -> T:
    """Move every tensor of a tree, and every leaf with a ``to`` method of its own, to a device.

    Copies to the CPU block: a copy that does not may be read before it has arrived (pytorch issues 127612 and 140296).
    Copies from pinned memory to an accelerator do not. What is on the device already is not copied.

    Args:
        tree: Any nesting of containers; see `fusion_ensemble_plugin.tree`.
        device: Where to.
        name: What to call the tree in an error.

    Returns:
        A tree of the same types; the very same tree if there was nothing to move.

    Raises:
        TypeError: If a leaf cannot be moved, naming it.
    """
    leaves, structure = flatten(tree)
    moved = [_move_leaf(leaf, device) for leaf in leaves]
    if all(new is old for new, old in zip(moved, leaves)):
        return tree
    failed = next((i for i, leaf in enumerate(moved) if isinstance(leaf, _Failed)), None)
    if failed is not None:
        path = list(structure.paths(name))[failed]
        raise TypeError(f"{path} ({type(leaves[failed]).__name__}) cannot be moved to {device}") from moved[
            failed
        ].error
    result: T = unflatten(structure, moved)
    return result


def scatter(tree: T, devices: Iterable[torch.device | None]) -> dict[torch.device | None, T]:
    """Bring a tree to each distinct device, once each; None stands for "leave it where it is"."""
    return {device: tree if device is None else move(tree, device, "input") for device in dict.fromkeys(devices)}


def device_of(tree: Any) -> torch.device | None:
    """Return the device of the first tensor in a tree, or None if it holds none."""
    return next((leaf.device for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)), None)


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _move_leaf(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Tensor) and leaf.device == device:
        return leaf
    if isinstance(leaf, torch.nn.Module) or not callable(getattr(leaf, "to", None)):
        return leaf
    try:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=device.type != "cpu" and leaf.device.type == "cpu" and _pinned(leaf))
        return leaf.to(device)
    except Exception as error:
        return _Failed(error)


def _pinned(leaf: Tensor) -> bool:
    return torch.cuda.is_available() and leaf.is_pinned()
