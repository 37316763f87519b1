"""What a computation depends on, as a digest: the member with its weights, its input, and torch's settings."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping, MutableMapping
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fusion_ensemble_plugin.alike import NAMES_ONLY

_OWN = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_CAPTURING = "transformers.utils.output_capturing"  # its hooks come with a module's first run and change nothing
_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.Size)


class Content:
    """A digest that is fed with values, one after another; 128 bits of them tell two contents apart."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._seen: dict[int, tuple[int, Any]] = {}  # holds the objects too: an id must not be taken again

    def hexdigest(self) -> str:
        """Return the digest of all that was fed."""
        return self._hash.hexdigest()

    def feed(self, value: Any) -> Content:
        """Take in a value by its content: functions count by their code, objects by their attributes."""
        if isinstance(value, _PLAIN):
            return self._text(f"{type(value).__name__} {value!r}")
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, type):
            return self._text(f"class {source_of(value)}")
        if id(value) in self._seen:
            return self._text(f"again {self._seen[id(value)][0]}")
        self._seen[id(value)] = (len(self._seen), value)
        return self._structured(value)

    def _structured(self, value: Any) -> Content:
        if isinstance(value, (FunctionType, MethodType)):
            return self._function(getattr(value, "__func__", value))
        if isinstance(value, nn.Module):
            return self._module(value)
        self._text(f"{type(value).__module__}.{type(value).__qualname__}")
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            return self._mapping(dict(enumerate(value)))
        if isinstance(value, (set, frozenset)):
            return self._text(repr(sorted(map(repr, value))))
        return self._mapping(getattr(value, "__dict__", {}))

    def _mapping(self, values: Mapping[Any, Any]) -> Content:
        self._text(f"{len(values)} items")
        for key, value in values.items():
            if key not in NAMES_ONLY:
                self._text(f"key {key!r}").feed(value)
        return self

    def _module(self, module: nn.Module) -> Content:
        """Take in all that a module computes with: its class, its attributes, its tensors, its submodules."""
        self.feed(type(module)).feed(module.training)
        for tensors in (module._parameters, module._buffers):
            self._mapping(tensors)
        self._mapping({key: value for key, value in vars(module).items() if key not in _OWN})
        return self._mapping(module._modules)

    def _function(self, function: Any) -> Content:
        code = getattr(function, "__code__", None)
        self._text(f"function {getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)!s}")
        if code is not None:
            self._hash.update(code.co_code)
            self._text(repr([const for const in code.co_consts if isinstance(const, _PLAIN)]))
        for cell in getattr(function, "__closure__", None) or ():
            self.feed(cell.cell_contents)
        return self

    def _tensor(self, tensor: Tensor) -> Content:
        self._text(f"tensor {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}")
        self._hash.update(tensor_bytes(tensor) if tensor.device.type == "cpu" else _remembered(tensor))
        return self

    def _text(self, text: str) -> Content:
        self._hash.update(f"{len(text)} {text}".encode())
        return self


def tensor_bytes(tensor: Tensor) -> Any:
    """Return a tensor's numbers as a buffer of bytes, copied only if they don't lie side by side on the CPU."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


_digests: MutableMapping[Tensor, tuple[tuple[int, ...], bytes]] = WeakIdKeyDictionary()


def _remembered(tensor: Tensor) -> bytes:
    """Return the digest of an accelerator's tensor, copied to the CPU only if it may have changed.

    Its version counter tells of changes in place, a sum over its bytes on the device of those that go around it.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    stamp = (tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, int(flat.sum(dtype=torch.int64)))
    if tensor not in _digests or _digests[tensor][0] != stamp:
        _digests[tensor] = (stamp, xxhash.xxh3_128_digest(tensor_bytes(tensor)))
    return _digests[tensor][1]


@cache
def source_of(cls: type) -> str:
    """Return a class's name and the digest of its code, so that what an older version computed is not taken for new."""
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in cls.__mro__]
    try:
        code = inspect.getsource(cls)
    except (OSError, TypeError):  # it was typed into an interpreter
        code = ""
    return f"{names} {xxhash.xxh3_128_hexdigest(code.encode())}"


def settings(device: torch.device | None, autocast: torch.dtype | None) -> list[str]:
    """Return what of torch's settings changes the bits of a result.

    Args:
        device: Where the member computes.
        autocast: The dtype under which its ensemble runs it.
    """
    kind = "cpu" if device is None else device.type
    ambient = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return [
        torch.__version__,
        str(device),
        str(autocast or ambient),
        torch.get_float32_matmul_precision(),
        str(torch.get_default_dtype()),
        str(torch.are_deterministic_algorithms_enabled()),
    ]


def repeatable(member: nn.Module) -> str:
    """Say why a member's answers can't be kept; "" if they can.

    Hooks may have effects of their own, which a kept answer would not have; in training mode the same input may give
    another output, and statistics are updated; and an output that a gradient is wanted of needs its graph.
    """
    for module in member.modules():
        if module.training:
            return "it is in training mode; call eval()"
        for kind in _HOOKS:
            if any(getattr(hook, "__module__", None) != _CAPTURING for hook in getattr(module, kind).values()):
                return "it has forward hooks"
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in member.parameters()):
        return "gradients are wanted; evaluate under torch.no_grad()"
    return ""
