"""Numbers of bytes, as users write them, and which members stay when there is too little memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fusion_ensemble_plugin.memory import bounds, choose_offloaded, memory_of, parse_bytes, room_for, show_bytes

NAMES = [f"member{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("7B", 7),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("20GiB", 20 * 2**30),
        ("20gib", 20 * 2**30),
        (" 1.5 GB ", 1_500_000_000),
        ("0.5TiB", 2**39),
        ("2TB", 2 * 10**12),
        ("0", 0),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(written: int | str, expected: int) -> None:
    assert parse_bytes(written) == expected


@pytest.mark.parametrize("written", ["", "GiB", "-1", -1, "1 2", "3 elephants", "1.GiB", "1e9", "None", "20 G", True])
def test_what_is_no_size_is_told(written: int | str) -> None:
    with pytest.raises(ValueError, match="is no number of bytes, such as 20GiB"):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**45, "32768.0 GiB")],
)
def test_sizes_are_shown_for_people(size: int, shown: str) -> None:
    assert show_bytes(size) == shown


@given(st.integers(0, 2**50))
def test_what_is_shown_can_be_read_again(size: int) -> None:
    assert parse_bytes(show_bytes(size)) == pytest.approx(size, rel=0.05)


def test_all_lanes_share_the_hosts_memory() -> None:
    assert [memory_of(device) for device in ("cpu:0", "cpu:7", "cuda:1", "meta")] == ["cpu", "cpu", "cuda:1", "meta"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, {}),
        ({"cpu": 5, "cuda:1": "1KiB"}, {"cpu": 5, "cuda:1": 1024}),
        ({0: 5, "1": 6}, {"cuda:0": 5, "cuda:1": 6}),
        ({"cuda": 5, "cpu:3": 6}, {"cuda:0": 5, "cpu": 6}),
    ],
)
def test_bounds_are_read_by_any_name_of_a_device(
    written: dict[object, object] | None, expected: dict[str, int]
) -> None:
    problems: list[str] = []
    assert bounds(written, ["cuda:0", "cuda:1"], problems) == expected
    assert problems == []


def test_a_number_is_an_accelerator_of_the_machines_own_kind() -> None:
    problems: list[str] = []
    assert bounds({1: 5}, ["xpu:0", "xpu:1"], problems) == {"xpu:1": 5}
    assert problems == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"cuda:1": 5}, ["max_memory for 'cuda:1', which is not here"]),
        ({"cpu:0": 5, "cpu:1": 5}, ["max_memory for 'cpu' twice"]),
        ({0: 5, "cuda:0": 5}, ["max_memory for 'cuda:0' twice"]),
        ({"cpu": None}, ["max_memory for 'cpu': None is no number of bytes, such as 20GiB, 500MB or 4096"]),
        ({"cpux": 5}, ["max_memory for 'cpux', which is not here"]),
    ],
)
def test_wrong_bounds_are_told(written: dict[object, object], expected: list[str]) -> None:
    problems: list[str] = []
    bounds(written, ["cuda:0"], problems)
    assert problems == expected


def test_the_room_on_the_cpu_is_the_bound_or_what_is_free() -> None:
    assert room_for("cpu:1", {"cpu": 5}) == 5
    assert 5 < room_for("cpu:1", {"cpu": 2**62}) < 2**62
    assert room_for("cpu:1", {}) > 5


def test_where_no_driver_tells_the_bound_is_all_there_is() -> None:
    assert room_for("mps:0", {"mps:0": 5}) == 5
    assert room_for("mps:0", {}) > 2**60


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=20),
    st.sampled_from([["cpu:0"], ["cpu:0", "cpu:1"], ["cuda:0"], ["cuda:0", "cuda:1"], ["cuda:0", "cpu:0"]]),
    st.integers(1, 1500),
)
def test_what_stays_and_the_visitors_fit_and_nobody_leaves_without_need(
    sizes: list[int], devices: list[str], room: int
) -> None:
    where = [devices[i % len(devices)] for i in range(len(sizes))]
    rooms = {memory_of(device): room for device in devices}
    try:
        away = choose_offloaded(sizes, where, rooms, NAMES)
    except ValueError:
        assume(False)
    for memory in rooms:
        here = [i for i in range(len(sizes)) if memory_of(where[i]) == memory]
        staying = sum(sizes[i] for i in here if i not in away)
        slots = len({where[i] for i in here}) if memory == "cpu" else 2
        visiting = slots * max((sizes[i] for i in here if i in away), default=0)
        assert staying + visiting <= room
        reserved = slots * max((sizes[i] for i in here), default=0)
        assert all(staying + sizes[i] + reserved > room for i in here if i in away)
        assert not (set(here) & set(away)) or sum(sizes[i] for i in here) > room


def test_a_small_member_stays_though_a_large_one_before_it_must_leave() -> None:
    assert choose_offloaded([1, 100, 1], ["cpu:0"] * 3, {"cpu": 101}, NAMES) == (1, 2)
    assert choose_offloaded([1, 100, 1], ["cpu:0"] * 3, {"cpu": 102}, NAMES) == ()
    assert choose_offloaded([50, 60, 10], ["cpu:0"] * 3, {"cpu": 75}, NAMES) == (0, 1)


@pytest.mark.parametrize(("device", "slots"), [("cpu:0", 1), ("cuda:0", 2)])
def test_no_room_for_the_visitors_is_told_with_the_member_and_what_lacks(device: str, slots: int) -> None:
    with pytest.raises(ValueError, match=rf"{slots} times 'member1', the largest: {slots * 60 - 50} B too little"):
        choose_offloaded([50, 60], [device] * 2, {memory_of(device): 50}, NAMES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_driver_tells_what_is_free_on_a_gpu() -> None:
    assert 0 < room_for("cuda:0", {}) <= torch.cuda.get_device_properties(0).total_memory
