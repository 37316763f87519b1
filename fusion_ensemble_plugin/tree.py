"""Trees of values: what models take and return, taken apart into leaves and put together again with the same types.

A tree is any nesting of dicts, Hugging Face ``ModelOutput`` and ``BatchEncoding``, lists, tuples, named tuples and
dataclasses. Everything else is a leaf.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.utils.generic import ModelOutput


@dataclasses.dataclass(frozen=True)
class Structure:
    """The shape of a tree without its leaves; two are equal if the same values can fill both.

    Attributes:
        kind: The type of the container, or None for a leaf. All ``ModelOutput`` classes are one kind: members of
            different architectures agree if their fields do.
        keys: Names (or positions) of the children.
        children: Their structures.
        build: Makes the container from its children's values.
    """

    kind: type | None = None
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()
    build: Callable[[Sequence[Any]], Any] = dataclasses.field(default=lambda values: values[0], compare=False)

    def paths(self, prefix: str = "output") -> Iterator[str]:
        """Yield the path of each leaf, in order, as one would write it in Python."""
        if self.kind is None:
            yield prefix
        for key, child in zip(self.keys, self.children):
            yield from child.paths(_join(prefix, key, self.kind))

    def difference(self, other: Structure, prefix: str = "output") -> str:
        """Say where two structures part, for an error message; "" if they are equal."""
        if self.kind != other.kind:
            return f"{prefix} is {_kind_name(self.kind)} in one and {_kind_name(other.kind)} in the other"
        if self.keys != other.keys:
            return f"{prefix} has the fields {list(self.keys)} in one and {list(other.keys)} in the other"
        pairs = zip(self.keys, self.children, other.children)
        return next((d for k, a, b in pairs if (d := a.difference(b, _join(prefix, k, self.kind)))), "")


LEAF = Structure()


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Take a tree apart.

    Args:
        tree: Any value.

    Returns:
        The leaves, depth first, and the structure that `unflatten` puts them back into.

    Examples:
        >>> leaves, structure = flatten({"a": 1, "b": (2, 3)})
        >>> leaves, list(structure.paths())
        ([1, 2, 3], ["output['a']", "output['b'][0]", "output['b'][1]"])
        >>> unflatten(structure, [10, 20, 30])
        {'a': 10, 'b': (20, 30)}
    """
    opened = _open(tree)
    if opened is None:
        return [tree], LEAF
    kind, keys, values, build = opened
    leaves: list[Any] = []
    children: list[Structure] = []
    for value in values:
        below, structure = flatten(value)
        leaves += below
        children.append(structure)
    return leaves, Structure(kind, tuple(keys), tuple(children), build)


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Any:
    """Put a tree together from its structure and its leaves, in the order of `flatten`."""
    return _filled(structure, iter(leaves))


def _filled(structure: Structure, leaves: Iterator[Any]) -> Any:
    # not a function inside `unflatten`: one that calls itself is a cycle, and its leaves would await the collector
    if structure.kind is None:
        return next(leaves)
    return structure.build([_filled(child, leaves) for child in structure.children])


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every leaf of a tree; containers are made anew."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])


_Opened = tuple[type, Iterable[Any], Iterable[Any], Callable[[Sequence[Any]], Any]]


def _open(tree: Any) -> _Opened | None:
    """Return a container's kind, keys, values and builder; None for a leaf."""
    cls = type(tree)
    if isinstance(tree, Mapping):
        keys = tuple(tree.keys())
        return _kind(tree), keys, [tree[k] for k in keys], mapping_builder(tree, keys)
    if isinstance(tree, torch.Size):
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return cls, tree._fields, tree, lambda values: cls(*values)
    if isinstance(tree, (tuple, list)):
        return cls, range(len(tree)), tree, cls
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return cls, names, [getattr(tree, name) for name in names], lambda values: _build_dataclass(cls, names, values)
    return None


def _kind(tree: Mapping[Any, Any]) -> type:
    return ModelOutput if isinstance(tree, ModelOutput) else type(tree)


def mapping_builder(tree: Mapping[Any, Any], keys: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
    """Return what makes a mapping of this type with these keys from their values.

    It does not hold the mapping itself, whose tensors would stay alive.
    """
    cls: Any = type(tree)
    if isinstance(tree, ModelOutput):
        return lambda values: _build_model_output(cls, keys, values)
    if isinstance(tree, defaultdict):
        factory = tree.default_factory
        return lambda values: cls(factory, zip(keys, values))
    if isinstance(tree, UserDict):
        attributes = {name: value for name, value in vars(tree).items() if name != "data"}
        return lambda values: _build_user_dict(cls, attributes, keys, values)
    return lambda values: cls(OrderedDict(zip(keys, values)))


def _build_model_output(cls: type, keys: Sequence[str], values: Sequence[Any]) -> Any:
    if cls is not ModelOutput:
        return cls(**dict(zip(keys, values)))
    output = ModelOutput()
    for key, value in zip(keys, values):
        output[key] = value
    return output


def _build_user_dict(cls: Any, attributes: Mapping[str, Any], keys: Sequence[Any], values: Sequence[Any]) -> Any:
    """Make a ``BatchEncoding``-like dict; its constructor takes other arguments than a dict's, so it is not called."""
    output = cls.__new__(cls)
    vars(output).update(attributes, data=dict(zip(keys, values)))
    return output


def _build_dataclass(cls: Any, names: Sequence[str], values: Sequence[Any]) -> Any:
    """Make a dataclass, frozen or not, from all its fields, also those its constructor doesn't take."""
    output = object.__new__(cls)
    for name, value in zip(names, values):
        object.__setattr__(output, name, value)
    return output


def _join(prefix: str, key: Any, kind: type | None) -> str:
    if isinstance(key, str) and kind is not None and not issubclass(kind, (dict, UserDict)):
        return f"{prefix}.{key}"
    if kind is ModelOutput:
        return f"{prefix}.{key}"
    return f"{prefix}[{key!r}]"


def _kind_name(kind: type | None) -> str:
    return "a single value" if kind is None else f"a {kind.__name__}"
