"""How many bytes a member takes, from its module or, before it is loaded, from the headers of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
INDEX = ".index.json"


def module_bytes(model: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, each counted once.

    Examples:
        >>> module_bytes(nn.Linear(3, 2))
        32
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def checkpoint_bytes(source: Any, dtype: torch.dtype | None = None) -> int | None:
    """Return the bytes that a model will take, without loading it.

    Args:
        source: A pool's entry: a module, a folder or hub id, or a mapping with ``pretrained_model_name_or_path``.
        dtype: What floating tensors will be cast to; None for their own.

    Returns:
        The bytes of all tensors in its safetensors files; None if there are none at hand (a hub is not asked).
    """
    if isinstance(source, nn.Module):
        return module_bytes(source)
    if isinstance(source, Mapping):
        source = source.get("pretrained_model_name_or_path")
    if not isinstance(source, (str, Path)):
        return None
    files = _weight_files(str(source))
    return sum(_tensor_bytes(file, dtype) for file in files) or None


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
    total = 0
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            view = tensors.get_slice(name)
            total += prod(view.get_shape()) * _item_size(view.get_dtype(), dtype)
    return total


def _item_size(stored: str, dtype: torch.dtype | None) -> int:
    """Return the bytes of one element; safetensors names its dtypes F32, BF16, I64, F8_E4M3, BOOL, ...."""
    floating = stored.startswith(("F", "BF"))
    if floating and dtype is not None:
        return dtype.itemsize
    digits = "".join(c for c in stored.split("_")[0] if c.isdigit())
    return int(digits) // 8 if digits else 1
