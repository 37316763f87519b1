"""The output contract: what members return comes back in its type, floating values reduced, others if all agree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from containers import Pair, Prediction, Record, same, tensors, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.reducer import MeanReducer
from fusion_ensemble_plugin.tree import flatten, map_leaves, unflatten

steady = settings(deadline=None, derandomize=True)
floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=2), st.floats(-99, 99), tensors(*floating, torch.int64)
)
any_output = trees(values)


def mean(outputs: Sequence[Any], order: Sequence[int] | None = None) -> Any:
    """Fold outputs, each under its own index, in some order."""
    fold = Fold(MeanReducer())
    for index in order or range(len(outputs)):
        fold.add(index, f"member{index}", outputs[index])
    return fold.lower()


def drawn_like(tree: Any, count: int, seed: int) -> list[Any]:
    """Return outputs in which all floating leaves are drawn anew."""
    generator = torch.Generator().manual_seed(seed)

    def anew(leaf: Any) -> Any:
        if isinstance(leaf, float):
            return torch.rand((), generator=generator).item()
        if isinstance(leaf, Tensor) and leaf.dtype in floating:
            return torch.randn(leaf.shape, dtype=torch.float64, generator=generator).to(leaf.dtype)
        return leaf

    return [map_leaves(anew, tree) for _ in range(count)]


def assert_like(one: Any, other: Any) -> None:
    """Compare leaves: what is reduced up to rounding, all else exactly."""
    if isinstance(one, (Tensor, float)):
        assert type(one) is type(other)
        torch.testing.assert_close(one, other)
    else:
        assert same(one, other)


@steady
@given(output=any_output, count=st.integers(1, 5))
def test_copies_of_an_output_give_that_output(output: Any, count: int) -> None:
    result = mean([output] * count)
    leaves, structure = flatten(result)
    for one, other in zip(leaves, flatten(output)[0], strict=True):
        assert_like(one, other)
    assert same(unflatten(structure, flatten(output)[0]), output)  # the very types


@steady
@given(output=any_output, count=st.integers(1, 5), seed=st.integers(0, 99))
def test_each_floating_leaf_is_the_mean_in_float64_rounded_once(output: Any, count: int, seed: int) -> None:
    outputs = drawn_like(output, count, seed)
    rows = zip(*(flatten(one)[0] for one in outputs), strict=True)
    for result, row in zip(flatten(mean(outputs))[0], rows, strict=True):
        if isinstance(row[0], float):
            assert result == pytest.approx(sum(row) / count, rel=1e-12, abs=1e-12)
        elif isinstance(row[0], Tensor) and row[0].dtype in floating:
            wide = torch.complex128 if row[0].is_complex() else torch.float64
            expected = torch.stack([tensor.to(wide) for tensor in row]).mean(0).to(row[0].dtype)
            torch.testing.assert_close(result, expected)
        else:
            assert same(result, row[0])


@steady
@given(output=any_output, seed=st.integers(0, 99))
def test_the_order_of_the_members_does_not_matter(output: Any, seed: int) -> None:
    outputs, order = drawn_like(output, 4, seed), list(range(4))
    random.Random(seed).shuffle(order)
    for one, other in zip(*(flatten(mean(outputs, o))[0] for o in (range(4), order)), strict=True):
        assert_like(one, other)


@steady
@given(output=any_output, seed=st.integers(0, 99), split=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_any_split_over_devices_gives_the_same(output: Any, seed: int, split: list[int]) -> None:
    outputs = drawn_like(output, 5, seed)
    folds = [Fold(MeanReducer()) for _ in range(3)]
    for index, (one, device) in enumerate(zip(outputs, split)):
        folds[device].add(index, str(index), one)
    total = Fold(MeanReducer())
    for fold in folds:
        total.merge(fold)
    for one, other in zip(flatten(mean(outputs))[0], flatten(total.lower())[0], strict=True):
        assert_like(one, other)
    assert sorted(total.names) == list("01234")
    assert total.total_weight == 5


@steady
@given(output=any_output)
def test_what_a_member_returns_is_not_written_to(output: Any) -> None:
    tensors_of = [leaf for leaf in flatten(output)[0] if isinstance(leaf, Tensor)]
    before = [tensor.clone() for tensor in tensors_of]
    mean([output, output, output])
    assert all(map(same, tensors_of, before))


def test_half_precision_is_summed_in_float32_and_cast_back() -> None:
    large = torch.full((2,), 40_000.0, dtype=torch.float16)  # two of them are above float16's largest number
    assert same(mean([large, large]), large)
    steps = [torch.tensor([256.0], dtype=torch.bfloat16), *[torch.tensor([1.0], dtype=torch.bfloat16)] * 15]
    assert mean(steps).item() == torch.tensor(271 / 16).bfloat16().item()  # bfloat16 has no 257: 256 + 1 is 256 there


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize(
    ("dtypes", "wider"),
    [
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float32, torch.complex64), torch.complex64),
    ],
)
def test_members_of_different_precision_give_the_wider_one(dtypes: Any, wider: torch.dtype, order: list[int]) -> None:
    outputs = [torch.tensor([value], dtype=dtype) for value, dtype in zip((1.0, 2.0), dtypes)]
    assert same(mean([outputs[i] for i in order]), torch.tensor([1.5], dtype=wider))


def test_arrays_pass_through_if_all_agree() -> None:
    array = np.array([1.0, 2.0])
    assert mean([{"x": array}, {"x": array.copy()}])["x"] is array


@pytest.mark.parametrize("default_device", ["cpu", "meta"])
def test_python_floats_stay_python_floats_whatever_the_default_device(default_device: str) -> None:
    with torch.device(default_device):
        result = mean([{"loss": 1.0, "temperature": 0.1}, {"loss": 2.0, "temperature": 0.2}])
    assert result == {"loss": 1.5, "temperature": pytest.approx(0.15, rel=1e-15)}
    assert type(result["loss"]) is float


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"loss": 1.0}, {"loss": torch.tensor(1.0)}),
        ({"loss": torch.tensor(1.0)}, {"loss": 1.0}),
        ({"loss": None}, {"loss": 1.0}),
        ({"loss": torch.tensor(1)}, {"loss": torch.tensor(1.0)}),
    ],
)
def test_a_field_of_two_kinds_is_an_error_that_names_it_and_the_members(left: Any, right: Any) -> None:
    with pytest.raises(ValueError, match=r"members 'member0' and 'member1' return different outputs: output\['loss'\]"):
        mean([left, right])


@pytest.mark.parametrize("value", [None, 3, True, "text", torch.tensor([1, 2]), torch.tensor([True]), b"raw", {1, 2}])
def test_what_cannot_be_averaged_passes_through_if_all_agree(value: Any) -> None:
    output = {"value": value, "logits": torch.ones(1)}
    assert same(mean([output, {**output}, {**output}]), output)


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (3, 4, "3 and 4"),
        ("en", "fr", "'en' and 'fr'"),
        (True, 1, "True and 1"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), r"a tensor of torch.int64 and shape \(2,\) and"),
        (torch.tensor([1]), torch.tensor([[1]]), r".* shape \(1,\) and a tensor of torch.int64 and shape \(1, 1\)"),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32), "a tensor of torch.int64 .* a tensor of torch.int32"),
        (None, torch.tensor([1]), "None and a tensor of torch.int64"),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0]), r"array\(\[1., 2.\]\) and array\(\[1., 3.\]\)"),
    ],
)
def test_what_members_disagree_on_is_named(left: Any, right: Any, told: str) -> None:
    outputs = [{"ids": (0, value)} for value in (left, left, right)]
    where = r"members 'member0' and 'member2' disagree on output\['ids'\]\[1\], which can't be averaged: "
    with pytest.raises(ValueError, match=where + told):
        mean(outputs)


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (torch.ones(2), {"a": torch.ones(2)}, "output is a single value in one and a dict in the other"),
        ({"a": 1.0}, {"b": 1.0}, r"output has the fields \['a'\] in one and \['b'\] in the other"),
        ((1.0, 2.0), (1.0,), r"output has the fields \[0, 1\] in one and \[0\] in the other"),
        (Pair(1.0, {}), Pair(1.0, []), r"output.right is a dict in one and a list in the other"),
        (
            BaseModelOutputWithPooling(torch.ones(1), torch.ones(1)),
            BaseModelOutput(torch.ones(1)),
            r"fields \['last_hidden_state', 'pooler_output'\] in one and \['last_hidden_state'\]",
        ),
    ],
)
def test_outputs_of_different_structure_are_an_error_that_names_field_and_members(
    left: Any, right: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=f"members 'member0' and 'member1' return different outputs: .*{told}"):
        mean([left, right])


def test_outputs_of_different_shape_are_an_error_that_names_field_members_and_shapes() -> None:
    outputs = [Prediction(torch.ones(2), Record([torch.ones(2, n)])) for n in (3, 3, 4)]
    told = r"members 'member0' and 'member2' return different shapes for output.extra.first\[0\]: \(2, 3\) and \(2, 4\)"
    with pytest.raises(ValueError, match=told):
        mean(outputs)


def test_shapes_that_would_broadcast_are_an_error_too() -> None:
    with pytest.raises(ValueError, match=r"different shapes for output: \(2, 3\) and \(1, 3\)"):
        mean([torch.ones(2, 3), torch.ones(1, 3)])


def test_outputs_of_different_architectures_are_averaged_if_their_fields_agree() -> None:
    result = mean([BaseModelOutput(torch.ones(1)), BaseModelOutputWithPooling(torch.zeros(1))])
    assert same(result, BaseModelOutput(torch.tensor([0.5])))


def test_partial_results_travel_and_python_floats_need_not() -> None:
    fold, total = Fold(MeanReducer()), Fold(MeanReducer())
    fold.add(0, "a", {"x": torch.ones(2), "ids": torch.ones(2, dtype=torch.int64), "loss": 2.0})
    fold.move(torch.device("meta"))
    total.merge(fold)
    result = total.lower()
    assert (result["x"].device.type, result["ids"].device.type, result["loss"]) == ("meta", "meta", 2.0)


def test_a_member_of_weight_w_counts_as_w_members() -> None:
    fold = Fold(MeanReducer())
    fold.add(0, "light", {"x": torch.tensor([1.0]), "y": 1.0}, 1.0)
    fold.add(1, "heavy", {"x": torch.tensor([4.0]), "y": 4.0}, 2.0)
    assert same(fold.lower(), {"x": torch.tensor([3.0]), "y": 3.0})


def test_nan_and_infinity_are_averaged_as_ieee_has_it() -> None:
    result = mean([torch.tensor([1.0, float("inf"), 2.0]), torch.tensor([float("nan"), 0.0, 4.0])])
    assert result[0].isnan()
    assert result[1:].tolist() == [float("inf"), 3.0]


def test_a_reducer_that_returns_a_named_tuple_gives_a_named_tuple_of_whole_outputs() -> None:
    class Ends(NamedTuple):
        low: Tensor
        high: Tensor

    class EndsReducer:
        def lift(self, output: Tensor, weight: float) -> Ends:
            return Ends(output, output)

        def merge(self, left: Ends, right: Ends) -> Ends:
            return Ends(torch.minimum(left.low, right.low), torch.maximum(left.high, right.high))

        def lower(self, state: Ends, total_weight: float) -> Ends:
            return state

    fold = Fold(EndsReducer())
    for index, value in enumerate((2.0, 1.0, 3.0)):
        fold.add(index, str(index), {"x": torch.tensor([value]), "y": value, "n": 7})
    low, high = {"x": torch.tensor([1.0]), "y": 1.0, "n": 7}, {"x": torch.tensor([3.0]), "y": 3.0, "n": 7}
    assert same(fold.lower(), Ends(low, high))


def test_a_reducer_that_returns_something_else_is_an_error_that_names_it() -> None:
    class Wrong(MeanReducer):
        def lower(self, state: Tensor, total_weight: float) -> Any:
            return [state]

    fold = Fold(Wrong())
    fold.add(0, "a", {"x": torch.ones(1)})
    with pytest.raises(TypeError, match=r"Wrong.lower returned a list for output\['x'\]"):
        fold.lower()


def test_nothing_folded_is_an_error() -> None:
    with pytest.raises(ValueError, match="no member has been folded in"):
        Fold(MeanReducer()).lower()


def test_stacked_outputs_fold_as_those_of_single_members() -> None:
    stacked = {"x": torch.randn(3, 2), "ids": torch.tensor([[1, 2]] * 3), "n": 5}
    at_once, one_by_one = Fold(MeanReducer()), Fold(MeanReducer())
    at_once.add_stack(range(3), "abc", stacked, [1.0, 2.0, 3.0])
    for i in range(3):
        one_by_one.add(i, "abc"[i], {"x": stacked["x"][i], "ids": stacked["ids"][i], "n": 5}, [1.0, 2.0, 3.0][i])
    for one, other in zip(flatten(at_once.lower())[0], flatten(one_by_one.lower())[0], strict=True):
        torch.testing.assert_close(one, other)


def test_stacked_members_that_disagree_are_an_error() -> None:
    fold = Fold(MeanReducer())
    with pytest.raises(ValueError, match=r"stacked members disagree on output\['ids'\]"):
        fold.add_stack([0, 1], "ab", {"ids": torch.tensor([1, 2])}, [1.0, 1.0])
