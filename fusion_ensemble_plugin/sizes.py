"""How many bytes a member takes, from its module or, before it is loaded, from the headers of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
INDEX = ".index.json"


def module_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a module's parameters and buffers, each counted once.

    Args:
        model: The module.
        dtype: What floating tensors will be cast to; None for their own.

    Examples:
        >>> module_bytes(nn.Linear(3, 2)), module_bytes(nn.Linear(3, 2), torch.float16)
        (32, 16)
    """
    tensors = (*model.parameters(), *model.buffers())
    return sum(t.numel() * ((dtype if t.is_floating_point() else None) or t.dtype).itemsize for t in tensors)


def checkpoint_bytes(source: Any, dtype: torch.dtype | None = None) -> int | None:
    """Return the bytes that a model will take, without loading it.

    Args:
        source: A pool's entry: a module, a folder or hub id, or a mapping with ``pretrained_model_name_or_path``.
        dtype: What floating tensors will be cast to; None for their own.

    Returns:
        The bytes of all tensors in its safetensors files; None if there are none at hand (a hub is not asked), or none
        that can be read: loading will say why, and of which member.
    """
    if isinstance(source, nn.Module):
        return module_bytes(source, dtype)
    if isinstance(source, Mapping):
        source = source.get("pretrained_model_name_or_path")
    if not isinstance(source, (str, Path)):
        return None
    try:
        return sum(_tensor_bytes(file, dtype) for file in _weight_files(str(source))) or None
    except (OSError, ValueError, LookupError):
        return None


def _weight_files(source: str) -> list[Path]:
    for name in WEIGHT_FILES:
        file = Path(source) / name if Path(source).is_dir() else _cached(source, name)
        if file is not None and file.is_file():
            return _shards(file) if name.endswith(INDEX) else [file]
    return []


def _cached(repo: str, name: str) -> Path | None:
    try:
        found = try_to_load_from_cache(repo, name)
    except ValueError:  # not the name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _shards(index: Path) -> list[Path]:
    names = set(json.loads(index.read_text())["weight_map"].values())
    return [index.parent / name for name in names if (index.parent / name).is_file()]


def _tensor_bytes(file: Path, dtype: torch.dtype | None) -> int:
    # safe_open would map the whole file, which the system may refuse where it is larger than the memory
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(content.read(length))
    return sum(_stored_bytes(entry, dtype) for name, entry in header.items() if name != "__metadata__")


def _stored_bytes(entry: Mapping[str, Any], dtype: torch.dtype | None) -> int:
    """Return the bytes of one tensor; safetensors names its dtypes F32, BF16, I64, F8_E4M3, BOOL, ...."""
    if dtype is not None and entry["dtype"].startswith(("F", "BF")):
        return int(prod(entry["shape"])) * dtype.itemsize
    begin, end = entry["data_offsets"]
    return int(end - begin)
