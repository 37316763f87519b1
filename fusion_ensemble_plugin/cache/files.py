"""One output in one safetensors file: written whole or not at all, and read only if it is what it should be."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils.generic import ModelOutput

from fusion_ensemble_plugin.cache.content import Content

FORMAT = "1"


class NotAsFile(Exception):
    """An output that no file can hold: it has other values than tensors, numbers and text, or containers of its own."""


class Unreadable(Exception):
    """A file that is not the output it should be."""


def write(path: Path, key: str, output: Any) -> None:
    """Write an output under its key.

    Raises:
        NotAsFile: If it can't be written so that the same comes back.
        OSError: If the disk is full, or the folder can't be written to.
    """
    tensors: list[Tensor] = []
    tree = _encoded(output, tensors)
    strides = [tensor.stride() for tensor in tensors]
    plain = {str(i): tensor.detach().cpu().contiguous().clone() for i, tensor in enumerate(tensors)}
    facts = {"format": FORMAT, "key": key, "tree": tree, "strides": strides}
    header = {"output": json.dumps(facts), "digest": _digest(facts, list(plain.values()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file(plain, temporary, metadata=header)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, Exception) and not isinstance(error, OSError):  # safetensors has errors of its own
            raise OSError(str(error)) from error
        raise


def read(path: Path, key: str) -> Any:
    """Read an output back.

    Raises:
        FileNotFoundError: If there is none.
        Unreadable: If the file is damaged, or another key's.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            facts = json.loads(header["output"])
            tensors = [file.get_tensor(str(i)) for i in range(len(facts["strides"]))]
        if facts["key"] != key or facts["format"] != FORMAT:
            raise Unreadable("it is another output's")
        if header["digest"] != _digest(facts, tensors):
            raise Unreadable("its bytes have changed")
        restored = [_strided(tensor, stride) for tensor, stride in zip(tensors, facts["strides"])]
        return _decoded(facts["tree"], restored)
    except Unreadable:
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _digest(facts: dict[str, Any], tensors: list[Tensor]) -> str:
    content = Content().feed(json.dumps(facts))
    for tensor in tensors:
        content.feed(tensor)
    return content.hexdigest()


def _strided(tensor: Tensor, stride: list[int]) -> Tensor:
    """Lay a tensor out in memory as it was: kernels, and so the last bits of what follows, may depend on it."""
    if list(tensor.stride()) == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _encoded(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        if tree.layout is not torch.strided or type(tree) is not Tensor or 0 in tree.stride():
            raise NotAsFile(f"a {type(tree).__name__} of layout {tree.layout}, stride {tree.stride()}")
        tensors.append(tree)
        return ["tensor", len(tensors) - 1]
    if tree is None or type(tree) in (bool, int, float, str):
        return ["value", tree]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, [_encoded(child, tensors) for child in tree]]
    kind = f"{type(tree).__module__}:{type(tree).__qualname__}" if isinstance(tree, ModelOutput) else "dict"
    known = type(tree) is dict or isinstance(tree, ModelOutput)
    if not known or any(not isinstance(key, str) for key in tree):
        raise NotAsFile(f"a {type(tree).__name__}")
    return [kind, [[key, _encoded(value, tensors)] for key, value in tree.items()]]


def _decoded(tree: Any, tensors: list[Tensor]) -> Any:
    kind, content = tree
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_decoded(child, tensors) for child in content)
    values = {key: _decoded(child, tensors) for key, child in content}
    return values if kind == "dict" else _model_output(kind, values)


def _model_output(name: str, values: dict[str, Any]) -> ModelOutput:
    """Make a ``ModelOutput``; its class must be there already: no file makes us import anything."""
    module, _, qualname = name.partition(":")
    cls = getattr(sys.modules.get(module), qualname, None)
    if not (isinstance(cls, type) and issubclass(cls, ModelOutput)):
        raise Unreadable(f"it is a {name}, which this process has not imported")
    if cls is not ModelOutput:
        made: ModelOutput = cls(**values)
        return made
    output = ModelOutput()
    for key, value in values.items():
        output[key] = value
    return output
