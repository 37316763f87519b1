"""Whether two modules differ in nothing but the values of their weights, so that one can compute for the other."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

NAMES_ONLY = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "id2label", "label2id", "transformers_version"}
    | {"_output_capturing_hooks_installed"}
)
"""Attributes that say where a model comes from, what its classes are called or whether it ran, not how it computes."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CAPTURING = "transformers.utils.output_capturing"  # its hooks come with the first run and change nothing

_OWN = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, type, torch.dtype, torch.device, torch.Size)


def difference(left: nn.Module, right: nn.Module) -> str:
    """Say in what two modules differ besides the values of parameters and buffers; "" if in nothing.

    Compared are the classes of all submodules, names, shapes, dtypes, devices and ties of parameters and buffers, the
    training mode, hooks, and every Python attribute: one that differs would silently take the first module's value.

    Examples:
        >>> difference(nn.Dropout(0.1), nn.Dropout(0.2))
        'p is 0.1 in one and 0.2 in the other'
        >>> difference(nn.Linear(2, 3), nn.Linear(2, 3))
        ''
    """
    ours, theirs = dict(left.named_modules()), dict(right.named_modules())
    if ours.keys() != theirs.keys():
        return f"submodules {sorted(ours.keys() ^ theirs.keys())} are in only one of them"
    for name in ours:
        found = _module_difference(ours[name], theirs[name], f"{name}." if name else "")
        if found:
            return found
    return "" if _ties(left) == _ties(right) else "different parameters are tied"


def _module_difference(left: nn.Module, right: nn.Module, prefix: str) -> str:
    if type(left) is not type(right):
        return f"{prefix or 'it '}is a {type(left).__name__} in one and a {type(right).__name__} in the other"
    for kind in ("_parameters", "_buffers"):
        ours, theirs = _kinds(getattr(left, kind)), _kinds(getattr(right, kind))
        if ours != theirs:
            return f"{prefix}{kind[1:]} are {ours} in one and {theirs} in the other"
    for kind in _HOOKS:
        found = _mapping_difference(_hooks(left, kind), _hooks(right, kind), f"{prefix}{kind[1:]}.", set())
        if found:
            return found
    ours, theirs = ({k: v for k, v in vars(module).items() if k not in _OWN} for module in (left, right))
    return _mapping_difference(ours, theirs, prefix, set())


def _kinds(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    return {k: None if t is None else (tuple(t.shape), t.dtype, str(t.device)) for k, t in tensors.items()}


def _hooks(module: nn.Module, kind: str) -> dict[int, Any]:
    hooks = getattr(module, kind).values()
    return dict(enumerate(hook for hook in hooks if getattr(hook, "__module__", None) != _CAPTURING))


def _ties(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


def _mapping_difference(left: Mapping[Any, Any], right: Mapping[Any, Any], prefix: str, seen: set[Any]) -> str:
    for key in [*left, *(key for key in right if key not in left)]:
        if key in NAMES_ONLY:
            continue
        if key not in left or key not in right:
            return f"{prefix}{key} is in only one of them"
        found = _value_difference(left[key], right[key], f"{prefix}{key}", seen)
        if found:
            return found
    return ""


def _value_difference(left: Any, right: Any, path: str, seen: set[Any]) -> str:
    """Compare attributes by value, objects by their attributes; ``seen`` ends cycles."""
    if left is right or (id(left), id(right)) in seen:
        return ""
    seen.add((id(left), id(right)))
    if type(left) is not type(right):
        return f"{path} is a {type(left).__name__} in one and a {type(right).__name__} in the other"
    if isinstance(left, nn.Module):
        return ""  # a submodule: compared as such
    if isinstance(left, _PLAIN):
        return "" if left == right else f"{path} is {left!r} in one and {right!r} in the other"
    if isinstance(left, Tensor):
        return "" if torch.equal(left, right) else f"{path}, a tensor that is no buffer, has different values"
    if isinstance(left, (FunctionType, MethodType)):
        return _function_difference(left, right, path, seen)
    if isinstance(left, Mapping):
        return _mapping_difference(left, right, f"{path}.", seen)
    if isinstance(left, (list, tuple)):
        return _mapping_difference(dict(enumerate(left)), dict(enumerate(right)), f"{path}.", seen)
    if hasattr(left, "__dict__"):
        return _mapping_difference(vars(left), vars(right), f"{path}.", seen)
    return "" if bool(left == right) else f"{path} is {left!r} in one and {right!r} in the other"


def _function_difference(left: Callable[..., Any], right: Callable[..., Any], path: str, seen: set[Any]) -> str:
    """Compare functions by their code and what they have closed over; methods by their code alone."""
    ours, theirs = (getattr(f, "__func__", f) for f in (left, right))
    if ours.__code__ is not theirs.__code__:
        return f"{path} is another function"
    for mine, other in zip(ours.__closure__ or (), theirs.__closure__ or ()):
        if isinstance(mine.cell_contents, nn.Module):
            return f"{path} is a function of one certain module"
        found = _value_difference(mine.cell_contents, other.cell_contents, path, seen)
        if found:
            return found
    return ""
