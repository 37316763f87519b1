"""Trees of tensors go to a device: all of each, once to each, and what cannot go is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from containers import Record, same, tensors, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BatchEncoding

from fusion_ensemble_plugin.transfer import device_of, move, scatter, torch_device
from fusion_ensemble_plugin.tree import flatten, map_leaves

CPU, META = torch.device("cpu"), torch.device("meta")
steady = settings(deadline=None, derandomize=True)
any_tree = trees(st.one_of(st.none(), st.integers(), st.text(max_size=2), tensors()))


class Box:
    """Not a tensor and no container, but it can be moved."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def to(self, device: torch.device) -> Box:
        return Box(self.tensor.to(device))


class Nailed(Box):
    """And this one cannot."""

    def to(self, device: torch.device) -> Box:
        raise RuntimeError(f"no room on {device}")


@steady
@given(tree=any_tree)
def test_all_tensors_of_a_tree_are_moved_and_all_else_stays(tree: Any) -> None:
    moved = move(tree, META)
    as_if = map_leaves(lambda leaf: leaf.to(META) if isinstance(leaf, Tensor) else leaf, tree)
    assert flatten(moved)[1] == flatten(tree)[1]
    for new, old, expected in zip(*(flatten(each)[0] for each in (moved, tree, as_if)), strict=True):
        if isinstance(old, Tensor):
            assert (new.device, new.shape, new.dtype) == (META, expected.shape, expected.dtype)
        else:
            assert new is old


@steady
@given(tree=any_tree)
def test_a_tree_that_is_there_already_is_not_copied(tree: Any) -> None:
    assert move(tree, CPU) is tree


def test_a_batch_encoding_is_moved_too() -> None:
    encoding = BatchEncoding({"input_ids": torch.ones(1, 2), "labels": None})
    moved = move(encoding, META)
    assert type(moved) is BatchEncoding
    assert moved["input_ids"].device == META
    assert same(encoding["input_ids"], torch.ones(1, 2))


def test_what_has_a_way_to_move_of_its_own_is_moved_by_it() -> None:
    moved = move({"boxes": [Box(torch.ones(1))]}, META)
    assert moved["boxes"][0].tensor.device == META


def test_modules_among_the_inputs_stay_where_they_are() -> None:
    module = nn.Linear(1, 1)
    assert move([module], META)[0] is module
    assert module.weight.device == CPU


def test_what_cannot_be_moved_is_named() -> None:
    with pytest.raises(TypeError, match=r"input\['a'\]\[1\].second \(Nailed\) cannot be moved to meta") as caught:
        move({"a": [1, Record(torch.ones(1), Nailed(torch.ones(1)))]}, META, "input")
    assert "no room on meta" in str(caught.value.__cause__)


def test_gradients_flow_through_a_copy() -> None:
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    moved = move([weight.to(torch.float32)], CPU)
    moved[0].sum().backward()
    assert weight.grad is not None


def test_a_tree_is_brought_to_each_device_once_and_left_where_it_is_for_no_device() -> None:
    copies: list[torch.device] = []

    class Counted(Box):
        def to(self, device: torch.device) -> Box:
            copies.append(device)
            return super().to(device)

    tree = {"box": Counted(torch.ones(2)), "mask": torch.ones(2)}
    there = scatter(tree, [META, CPU, META, None, META, CPU])
    assert copies == [META, CPU]
    assert list(there) == [META, CPU, None]
    assert there[None] is tree
    assert there[META]["mask"].device == META
    assert there[CPU]["mask"] is tree["mask"]


def test_the_device_of_a_tree_is_that_of_its_first_tensor() -> None:
    assert device_of({"text": "none", "ids": [1, torch.ones(1, device="meta"), torch.ones(1)]}) == META
    assert device_of({"text": "none"}) is None


def test_every_cpu_lane_is_torchs_one_cpu() -> None:
    assert {torch_device(f"cpu:{i}") for i in range(3)} == {CPU}
    assert torch_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_memory_goes_to_a_gpu_without_blocking_and_copies_to_the_cpu_have_arrived() -> None:
    gpu, large = torch.device("cuda:0"), torch.ones(2**24)
    there = move(large.pin_memory(), gpu)
    for count in range(2, 12):
        there = there + 1
        assert move(there, CPU)[-1].item() == count
