"""What device maps mean on machines with and without accelerators, and in how much memory."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion_ensemble_plugin.device_map import UNLIMITED
from fusion_ensemble_plugin.memory import show_bytes
from fusion_ensemble_plugin.placement import Placement, describe, resolve

NAMES = ["mnist", "svhn", "dtd", "gtsrb"]
KIB = 1024


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Two GPUs; the result holds how many bytes the driver says are free, which a test may change."""
    free = {"cpu": 1000 * KIB, "cuda:0": 1000 * KIB, "cuda:1": 1000 * KIB}
    present = {"cpu": UNLIMITED, "meta": UNLIMITED, "cuda": 2}
    monkeypatch.setattr("fusion_ensemble_plugin.placement.present_devices", lambda: present)
    monkeypatch.setattr("fusion_ensemble_plugin.memory._free", free.__getitem__)
    return free


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CPUs alone."""
    monkeypatch.setattr("fusion_ensemble_plugin.placement.present_devices", lambda: {"cpu": -1, "meta": -1})


def placed(device_map: Any, sizes: list[int] | None = None, **options: Any) -> Placement:
    """Resolve a map that has a placement."""
    placement = resolve(device_map, NAMES[: len(sizes)] if sizes else NAMES, sizes, **options)
    assert placement is not None
    return placement


def loads(placement: Placement, sizes: list[int]) -> dict[str, int]:
    """Return the bytes of each device's members."""
    return {device: sum(sizes[i] for i in members) for device, members in placement.groups.items()}


def test_null_leaves_the_members_where_they_are() -> None:
    assert resolve(None, NAMES) is None


def test_a_placement_is_the_answer_already() -> None:
    placement = Placement(("cpu:0", "cpu:1", "cpu:0", "cpu:0"), (1,))
    assert resolve(placement, NAMES) is placement


def test_a_placement_of_other_members_is_refused() -> None:
    with pytest.raises(ValueError, match="places 2 members, but there are 4"):
        resolve(Placement(("cpu:0", "cpu:1")), NAMES)


def test_a_placement_is_frozen_and_survives_pickling() -> None:
    placement = Placement(("cpu:0", "cpu:1"))
    assert pickle.loads(pickle.dumps(placement)) == placement
    assert hash(placement) == hash(Placement(("cpu:0", "cpu:1")))
    with pytest.raises(FrozenInstanceError):
        placement.devices = ()  # type: ignore[misc]


def test_groups_keep_the_order_of_first_members() -> None:
    assert Placement(("cpu:3", "cpu:1", "cpu:3")).groups == {"cpu:3": (0, 2), "cpu:1": (1,)}
    assert list(Placement(("cpu:3", "cpu:1", "cpu:3")).groups) == ["cpu:3", "cpu:1"]


@pytest.mark.usefixtures("gpus")
def test_auto_gives_the_largest_first_to_the_emptiest_accelerator() -> None:
    sizes = [10 * KIB, 70 * KIB, 30 * KIB, 40 * KIB]
    placement = placed("auto", sizes)
    assert placement.devices == ("cuda:0", "cuda:0", "cuda:1", "cuda:1")
    assert loads(placement, sizes) == {"cuda:0": 80 * KIB, "cuda:1": 70 * KIB}


@pytest.mark.usefixtures("gpus")
def test_auto_counts_members_alike_where_sizes_are_unknown() -> None:
    assert sorted(placed("auto").devices) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.usefixtures("no_gpus")
@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=30), lanes=st.integers(1, 8))
def test_auto_leaves_lanes_apart_by_no_more_than_the_largest_member(sizes: list[int], lanes: int) -> None:
    placement = resolve("auto", [str(i) for i in range(len(sizes))], sizes, lanes=lanes)
    assert placement is not None
    total = loads(placement, sizes)
    assert sum(total.values()) == sum(sizes)
    heaviest, lightest = max(total.values()), min(total.get(f"cpu:{i}", 0) for i in range(lanes))
    assert heaviest - lightest <= max(sizes)


@pytest.mark.usefixtures("no_gpus")
def test_auto_without_accelerators_is_one_lane_unless_more_are_given() -> None:
    assert set(placed("auto").devices) == {"cpu:0"}
    assert placed("auto", lanes=2).devices == ("cpu:0", "cpu:1", "cpu:0", "cpu:1")


def test_auto_heeds_what_the_driver_says_is_free(gpus: dict[str, int]) -> None:
    gpus["cuda:0"] = 15 * KIB
    assert placed("auto", [10 * KIB] * 4).devices.count("cuda:0") == 1


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("key", ["cuda:0", 0, "0", "cuda"])
def test_auto_heeds_the_users_bound_by_any_name_of_the_device(key: Any) -> None:
    devices = placed("auto", [10 * KIB] * 4, max_memory={key: "15KiB"}).devices
    assert devices.count("cuda:0") == 1


def test_the_smaller_of_bound_and_free_memory_counts(gpus: dict[str, int]) -> None:
    gpus["cuda:0"] = 15 * KIB
    assert placed("auto", [10 * KIB] * 4, max_memory={"cuda:0": "20GiB"}).devices.count("cuda:0") == 1


@pytest.mark.usefixtures("gpus")
def test_what_does_not_fit_is_an_error_that_says_by_how_much() -> None:
    with pytest.raises(ValueError, match=r"cuda:0 has room for 15\.0 KiB, its members take 40\.0 KiB; offload=disk"):
        resolve("cuda:0", NAMES, [10 * KIB] * 4, max_memory={"cuda:0": 15 * KIB})


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("offload", [None, "cpu", "disk"])
def test_a_budget_too_small_for_the_largest_member_names_it_and_says_what_lacks(offload: str | None) -> None:
    sizes = [KIB, 30 * KIB, KIB, KIB]
    with pytest.raises(ValueError, match=r"'svhn', the largest") as error:
        resolve("cuda:0", NAMES, sizes, max_memory={"cuda:0": 20 * KIB}, offload=offload)
    lacking = {None: 30 - 20, "cpu": 2 * 30 - 20, "disk": 2 * 30 - 20}[offload]  # two slots where weights stream
    assert f"{show_bytes(lacking * KIB)} too little" in str(error.value)


@pytest.mark.usefixtures("gpus")
def test_with_offload_what_does_not_fit_rests_elsewhere() -> None:
    placement = placed("cuda:0", [10 * KIB] * 4, max_memory={"cuda:0": 35 * KIB}, offload="cpu")
    assert placement == Placement(("cuda:0",) * 4, (1, 2, 3))


@pytest.mark.usefixtures("gpus")
def test_offload_to_cpu_memory_takes_nothing_off_the_cpu_itself() -> None:
    with pytest.raises(ValueError, match="cpu has room for"):
        resolve("cpu", NAMES, [10 * KIB] * 4, max_memory={"cpu": 35 * KIB}, offload="cpu")
    assert placed("cpu", [10 * KIB] * 4, max_memory={"cpu": 35 * KIB}, offload="disk").offloaded == (2, 3)


@pytest.mark.usefixtures("gpus")
def test_offload_without_bounds_goes_by_what_is_free(gpus: dict[str, int]) -> None:
    gpus["cuda:0"] = 35 * KIB
    assert placed("cuda:0", [10 * KIB] * 4, offload="cpu").offloaded == (1, 2, 3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device_map": "auto", "lanes": 0}, "lanes=0 is not a whole number above 0"),
        ({"device_map": "auto", "lanes": -2}, "lanes=-2 is not"),
        ({"device_map": "auto", "lanes": "two"}, "lanes='two' is not"),
        ({"device_map": "auto", "lanes": True}, "lanes=True is not"),
        ({"device_map": "cpu", "lanes": 2}, "lanes go with device_map=auto only"),
        ({"device_map": None, "lanes": 2}, "lanes go with device_map=auto only"),
        ({"device_map": "cpu", "offload": "tape"}, "offload='tape' is not one of cpu, disk"),
        ({"device_map": None, "offload": "cpu"}, "need a device_map"),
        ({"device_map": None, "max_memory": {"cpu": 1}}, "need a device_map"),
        ({"device_map": "cpu", "max_memory": {"cuda:7": 1}}, "max_memory for 'cuda:7', which is not here"),
        ({"device_map": "cpu", "max_memory": {"cpu": "3 elephants"}}, "'3 elephants' is no number of bytes"),
        ({"device_map": "cpu", "max_memory": {"cpu": -1}}, "-1 is no number of bytes"),
        ({"device_map": "cpu", "max_memory": "20GiB"}, "max_memory='20GiB' is not a mapping"),
        ({"device_map": "cpu", "max_memory": [1, 2]}, "is not a mapping"),
    ],
)
def test_each_wrong_option_is_told(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=r"^device_map=.*Members: 0 \(mnist\).*Devices here: cpu") as error:
        resolve(names=NAMES, **options)
    assert problem in str(error.value)


@pytest.mark.usefixtures("no_gpus")
def test_wrong_options_and_wrong_places_are_told_together() -> None:
    with pytest.raises(ValueError, match="device_map=") as error:
        resolve({"mnist": "cuda:0"}, NAMES, lanes=0, max_memory={"cuda:7": "x"}, offload="tape")
    told = ["lanes=0", "offload='tape'", "'cuda:7'", "'x'", "'svhn', 'dtd', 'gtsrb'", "no device 'cuda:0'"]
    assert [word for word in told if word not in str(error.value)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_told_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no device 'cuda:0'\. Members: .*Devices here: cpu \(cpu:0, cpu:1"):
        resolve("cuda:0", NAMES)


def test_the_option_at_fault_can_be_named() -> None:
    with pytest.raises(ValueError, match=r"^output_device=teapot: no device 'teapot'"):
        resolve("teapot", ["output"], option="output_device")


def test_the_plan_is_a_table_of_places_bytes_and_shares() -> None:
    table = describe(Placement(("cuda:0", "cpu:1", "cpu:0"), (0,)), NAMES[:3], [3 * KIB, 512, 512]).splitlines()
    assert [row.split() for row in table] == [
        ["member", "device", "bytes", "share"],
        ["mnist", "cuda:0", "3.0", "KiB", "75.0", "%", "offloaded"],
        ["svhn", "cpu:1", "512", "B", "12.5", "%"],
        ["dtd", "cpu:0", "512", "B", "12.5", "%"],
    ]


def test_the_plan_says_that_sizes_are_not_known() -> None:
    assert describe(Placement(("cpu:0",)), ["mnist"]).splitlines()[1].split() == ["mnist", "cpu:0", "?", "?"]
