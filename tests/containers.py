"""Every container in which models take and return values, and a comparison that shares no code with ours."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput


class Pair(NamedTuple):
    """A named tuple."""

    left: Any
    right: Any


class Triple(tuple):
    """A subclass of tuple without names."""


class Row(list):
    """A subclass of list."""


@dataclasses.dataclass
class Record:
    """A dataclass."""

    first: Any
    second: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen dataclass with a field that its constructor does not take."""

    first: Any
    derived: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", 0)


@dataclasses.dataclass
class Prediction(ModelOutput):
    """A Hugging Face output of a user's own."""

    scores: Any = None
    extra: Any = None


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw any nesting of all containers."""
    return st.recursive(leaves, _containers, max_leaves=6)


def _containers(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(st.sampled_from(["a", "b", 0, 1]), values, max_size=3)
    named = st.dictionaries(st.sampled_from(["ids", "mask", "types"]), values, min_size=1, max_size=3)
    lists = st.lists(values, max_size=3)
    return st.one_of(
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda items: defaultdict(list, items)),
        dicts.map(UserDict),
        named.map(BatchEncoding),
        named.map(_plain_output),
        lists,
        lists.map(tuple),
        lists.map(Row),
        lists.map(Triple),
        st.builds(Pair, values, values),
        st.builds(Record, values, values),
        st.builds(_frozen, values, values),
        st.builds(Prediction, tensors(), values),
        st.builds(BaseModelOutputWithPooling, tensors(), values),
    )


def _plain_output(fields: dict[str, Any]) -> ModelOutput:
    output = ModelOutput()
    for name, value in fields.items():
        output[name] = value
    return output


def _frozen(first: Any, derived: Any) -> Frozen:
    frozen = Frozen(first)
    object.__setattr__(frozen, "derived", derived)
    return frozen


def tensors(*dtypes: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Draw small tensors of small numbers that each of the dtypes has, scalars and empty ones too."""
    shapes = st.sampled_from([(), (0,), (2,), (2, 3)])

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, shape, generator=generator).to(dtype)

    return st.builds(tensor, shapes, st.sampled_from(dtypes or (torch.float32, torch.int64)), st.integers(0, 9))


def same(left: Any, right: Any) -> bool:
    """Compare type for type and value for value, bit by bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.device == right.device and torch.equal(left, right)
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    return left == right or (isinstance(left, float) and math.isnan(left) and math.isnan(right))
