"""A member's tensors: taken out of it, written, compared, read, and put into another module of its kind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def tensors_of(module: nn.Module) -> Tensors:
    """Return all parameters and buffers, also those that no state dict holds; tied ones once, under their first name.

    Raises:
        ValueError: If some can't be written as they are: on the meta device, quantized, or sharded.
    """
    ties = ties_of(module)
    found = {name: slot[key] for name, slot, key in _slots(module) if name not in ties}
    odd = [name for name, tensor in found.items() if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter)]
    if odd:
        example = f"{odd[0]!r} is {'on the meta device' if found[odd[0]].is_meta else type(found[odd[0]]).__name__}"
        raise ValueError(f"{len(odd)} of its tensors can't be written as safetensors: {example}")
    return {name: tensor.detach() for name, tensor in found.items()}


def ties_of(module: nn.Module) -> dict[str, str]:
    """Return every further name of a tensor that has several, and its first."""
    first: dict[int, str] = {}
    ties = {}
    for name, slot, key in _slots(module):
        known = first.setdefault(id(slot[key]), name)
        if known != name:
            ties[name] = known
    return ties


def split_persistent(module: nn.Module, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Part what a checkpoint of this module holds from the buffers that are left out of checkpoints."""
    left_out = {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules(remove_duplicate=False)
        for name in part._non_persistent_buffers_set
    }
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    return kept, {name: tensor for name, tensor in tensors.items() if name in left_out}


def same_bits(left: Tensors, right: Tensors) -> bool:
    """Say whether two members have the same weights, bit for bit; stops at the first tensor that differs."""
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def write_tensors(file: Path, tensors: Tensors) -> int:
    """Write tensors to a file, and see to it that they are on the disk.

    Returns:
        The bytes of the file.
    """
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if memory in seen else tensor  # safetensors refuses tensors that share memory
        seen.add(memory)
    try:
        save_file(own, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} can't be written: {error}") from error
    sync(file)
    return file.stat().st_size


def read_tensors(file: Path) -> Tensors:
    """Map a file's tensors into memory; what is not used is not read.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def put_tensors(module: nn.Module, tensors: Tensors, ties: Mapping[str, str]) -> None:
    """Give a module these tensors as its parameters and buffers, with their dtypes, tied as they were.

    Raises:
        ValueError: If names or shapes don't fit; the message lists all that don't, and the module is as it was.
    """
    _check_fit({name: slot[key] for name, slot, key in _slots(module)}, tensors, ties)
    placed: Tensors = {}
    for name, slot, key in list(_slots(module)):
        stored = ties.get(name, name)
        if stored not in placed:
            placed[stored] = _filled(slot[key], tensors[stored], taken=placed)
        slot[key] = placed[stored]


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name == "nt":  # folders can't be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _slots(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield every name of a parameter or buffer, the mapping that holds it, and its key there."""
    for path, part in module.named_modules(remove_duplicate=False):
        for slot in (part._parameters, part._buffers):
            for key, tensor in slot.items():
                if tensor is not None:
                    yield f"{path}.{key}" if path else key, slot, key


def _filled(tensor: Tensor, value: Tensor, taken: Tensors) -> Tensor:
    """Return the tensor with another value; a new one if it can't take it, or is another's already."""
    if tensor.is_meta or any(tensor is other for other in taken.values()):
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    tensor.data = value
    return tensor


def _check_fit(slots: Mapping[str, Tensor], tensors: Tensors, ties: Mapping[str, str]) -> None:
    stored = {name: tensors[ties.get(name, name)] for name in slots if ties.get(name, name) in tensors}
    problems = [f"nothing is saved for {name!r}" for name in slots if name not in stored]
    problems += [f"it has no {name!r}" for name in (*tensors, *ties) if name not in slots]
    problems += [
        f"{name!r} is {tuple(slots[name].shape)}, saved is {tuple(tensor.shape)}"
        for name, tensor in stored.items()
        if slots[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the module does not fit the saved weights: {'; '.join(problems[:8])}{more}")


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.device == right.device and left.data_ptr() == right.data_ptr() and left.stride() == right.stride():
        return True
    ours, theirs = (tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(ours, theirs)
