"""Trees are taken apart into leaves and put together again with the same types."""

from __future__ import annotations

import gc
import weakref
from collections import UserDict, defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from containers import Frozen, Pair, Prediction, Record, same, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from fusion_ensemble_plugin.tree import LEAF, flatten, map_leaves, unflatten

steady = settings(deadline=None, derandomize=True)
any_tree = trees(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=2), st.just(torch.ones(2))))


@steady
@given(tree=any_tree)
def test_a_tree_put_together_from_its_leaves_is_the_same_tree(tree: Any) -> None:
    leaves, structure = flatten(tree)
    assert same(unflatten(structure, leaves), tree)


@steady
@given(tree=any_tree)
def test_each_path_read_as_python_is_its_leaf(tree: Any) -> None:
    leaves, structure = flatten(tree)
    found = [eval(path, {"output": tree}) for path in structure.paths()]
    assert len(found) == len(leaves)
    assert all(one is other for one, other in zip(found, leaves))


@steady
@given(tree=any_tree)
def test_map_leaves_changes_the_leaves_and_nothing_else(tree: Any) -> None:
    seen: list[Any] = []
    marked = map_leaves(lambda leaf: seen.append(leaf) or len(seen), tree)  # type: ignore[func-returns-value]
    assert flatten(marked)[0] == list(range(1, len(seen) + 1))
    assert flatten(marked)[1] == flatten(tree)[1]


@steady
@given(tree=any_tree)
def test_structures_of_equal_trees_are_equal_and_tell_no_difference(tree: Any) -> None:
    structure, twin = flatten(tree)[1], flatten(map_leaves(lambda leaf: leaf, tree))[1]
    assert structure == twin
    assert structure.difference(twin) == ""


@steady
@given(left=any_tree, right=any_tree)
def test_structures_that_are_not_equal_tell_where_they_part(left: Any, right: Any) -> None:
    ours, theirs = flatten(left)[1], flatten(right)[1]
    assert (ours == theirs) == (ours.difference(theirs) == "")


@pytest.mark.parametrize("leaf", [None, 3, "text", torch.ones(2), torch.Size([2, 3]), {1, 2}, Record, nn.Linear(1, 1)])
def test_what_is_no_container_is_a_leaf(leaf: Any) -> None:
    leaves, structure = flatten(leaf)
    assert leaves[0] is leaf
    assert structure == LEAF


@pytest.mark.parametrize("empty", [{}, [], (), UserDict(), ModelOutput(), {"a": (), "b": {}}])
def test_empty_containers_have_no_leaves_and_come_back(empty: Any) -> None:
    leaves, structure = flatten(empty)
    assert leaves == []
    assert same(unflatten(structure, leaves), empty)


def test_containers_with_something_of_their_own_keep_it() -> None:
    missing = map_leaves(lambda leaf: leaf, defaultdict(lambda: "made", a=1))
    assert missing["b"] == "made"

    encoding = BatchEncoding({"input_ids": torch.ones(1, 2)}, n_sequences=1)
    assert map_leaves(lambda leaf: leaf + 1, encoding).n_sequences == 1

    largest = torch.tensor([[1.0, 3.0]]).max(dim=1)
    assert type(map_leaves(lambda leaf: leaf, largest)) is type(largest)


def test_dataclasses_are_built_without_calling_their_constructor() -> None:
    @dataclass
    class Squared:
        side: float

        def __post_init__(self) -> None:
            self.side = self.side**2

    assert map_leaves(lambda leaf: leaf, Squared(3.0)).side == 9.0
    frozen = map_leaves(lambda leaf: leaf + 1, Frozen(1))
    assert (frozen.first, frozen.derived) == (2, 1)


def test_a_structure_holds_no_tensor() -> None:
    tensor = torch.ones(2)
    alive = weakref.ref(tensor)
    tree = {"a": [tensor], "b": Pair(tensor, Record(Prediction(scores=tensor))), "c": BatchEncoding({"ids": tensor})}
    structure = flatten(tree)[1]
    del tree, tensor
    gc.collect()
    assert alive() is None
    assert len(list(structure.paths())) == 5


def test_outputs_of_different_architectures_agree_if_their_fields_do() -> None:
    plain, pooled = BaseModelOutput(torch.ones(1)), BaseModelOutputWithPooling(torch.ones(1))
    assert flatten(plain)[1] == flatten(pooled)[1]
    assert flatten(plain)[1] != flatten({"last_hidden_state": torch.ones(1)})[1]


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        ({"a": 1}, [1], "output is a dict in one and a list in the other"),
        ({"a": 1}, 1, "output is a dict in one and a single value in the other"),
        ({"a": 1}, {"b": 1}, "output has the fields ['a'] in one and ['b'] in the other"),
        ([1, 2], [1], "output has the fields [0, 1] in one and [0] in the other"),
        ({"a": [1, {"b": 1}]}, {"a": [1, {}]}, "output['a'][1] has the fields ['b'] in one and [] in the other"),
        (Record(1, (1,)), Record(1, 2), "output.second is a tuple in one and a single value in the other"),
        (
            Prediction(1, 2),
            Prediction(1),
            "output has the fields ['scores', 'extra'] in one and ['scores'] in the other",
        ),
    ],
)
def test_a_difference_is_told_in_a_sentence(left: Any, right: Any, sentence: str) -> None:
    assert flatten(left)[1].difference(flatten(right)[1]) == sentence
