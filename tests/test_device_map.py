"""Every spelling of a device map, as Python writes it and as Hydra's command line does, and all that can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fusion_ensemble_plugin.device_map import UNLIMITED, accelerators, allowed, present_devices, written_devices

NAMES = ["mnist", "svhn", "dtd"]
TWO_GPUS = {"cpu": UNLIMITED, "meta": UNLIMITED, "cuda": 2}


def read(device_map: Any, names: list[str] = NAMES) -> list[str]:
    """Return the device of each member, of a map without mistakes."""
    problems: list[str] = []
    devices = written_devices(device_map, names, TWO_GPUS, problems)
    assert problems == []
    return devices


def problems_of(device_map: Any, names: list[str] = NAMES) -> list[str]:
    """Return what is wrong with a map."""
    problems: list[str] = []
    written_devices(device_map, names, TWO_GPUS, problems)
    return problems


def from_the_command_line(text: str) -> Any:
    """Return what Hydra makes of ``method.device_map=<text>``."""
    value = OverridesParser.create().parse_override(f"method.device_map={text}").value()
    return OmegaConf.create({"device_map": value}).device_map


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("cuda:1", ["cuda:1"] * 3),
        ("cuda", ["cuda:0"] * 3),
        (1, ["cuda:1"] * 3),
        (torch.device("cuda", 1), ["cuda:1"] * 3),
        ("cpu", ["cpu:0"] * 3),
        (["cuda:0", "cpu:3", "meta"], ["cuda:0", "cpu:3", "meta"]),
        ((1, 0, "cpu"), ["cuda:1", "cuda:0", "cpu:0"]),
        ({0: "cuda:0", 1: "cuda:1", 2: "cuda:0"}, ["cuda:0", "cuda:1", "cuda:0"]),
        ({"2": 0, "0": 1, "1": 1}, ["cuda:1", "cuda:1", "cuda:0"]),
        ({"dtd": "cpu:1", "svhn": "cuda:1", 0: "cpu:0"}, ["cpu:0", "cuda:1", "cpu:1"]),
    ],
)
def test_each_spelling_gives_one_device_a_member(written: Any, expected: list[str]) -> None:
    assert read(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{0:cuda:0,1:cuda:1,2:cpu:1}", ["cuda:0", "cuda:1", "cpu:1"]),
        ("{svhn:cuda:0,mnist:cuda:1,dtd:cpu}", ["cuda:1", "cuda:0", "cpu:0"]),
        ("[cuda:0,cuda:1,1]", ["cuda:0", "cuda:1", "cuda:1"]),
        ("cuda:1", ["cuda:1"] * 3),
    ],
)
def test_hydras_command_line_can_write_each(written: str, expected: list[str]) -> None:
    assert read(from_the_command_line(written)) == expected


def test_null_places_no_member() -> None:
    assert read(from_the_command_line("null")) == []


def test_names_with_dots_and_names_of_methods_are_names() -> None:
    assert read({"v1.5": "cuda:1", "keys": "cpu:0"}, ["v1.5", "keys"]) == ["cuda:1", "cpu:0"]


def test_digits_are_a_name_where_a_member_is_called_so_and_else_an_index() -> None:
    assert read({"1": "cuda:0", "0": "cuda:1"}, ["1", "0"]) == ["cuda:0", "cuda:1"]
    assert read({1: "cuda:0", 0: "cuda:1"}, ["1", "0"]) == ["cuda:1", "cuda:0"]


@given(st.data())
def test_a_mapping_in_any_order_and_with_any_kind_of_keys_is_the_list(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("abc.", min_size=1), min_size=1, max_size=6, unique=True))
    devices = data.draw(st.lists(st.sampled_from(["cuda:0", "cuda:1", "cpu:2"]), min_size=len(names)))[: len(names)]
    keys = [data.draw(st.sampled_from([index, str(index), name])) for index, name in enumerate(names)]
    mapping = dict(data.draw(st.permutations(list(zip(keys, devices)))))
    assert read(mapping, names) == read(devices, names) == devices


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["cuda:0", "cuda:1"], ["no device for 'dtd'"]),
        ([], ["no device for 'mnist', 'svhn', 'dtd'"]),
        (["cpu"] * 4, ["4 devices for 3 members"]),
        ({0: "cpu", 1: "cpu", 2: "cpu", 3: "cpu"}, ["no member 3"]),
        ({-1: "cpu", 0: "cpu", 1: "cpu", 2: "cpu"}, ["no member -1"]),
        ({True: "cpu", 0: "cpu", "svhn": "cpu", 2: "cpu"}, ["no member True"]),
        ({"eurosat": "cpu", 0: "cpu", 1: "cpu"}, ["no member 'eurosat'", "no device for 'dtd'"]),
        ({0: "cpu", "mnist": "cpu", 1: "cpu", 2: "cpu"}, ["member 'mnist' twice: as 0 and as 'mnist'"]),
        ({1: "cpu", "1": "cpu", 0: "cpu", 2: "cpu"}, ["member 'svhn' twice: as 1 and as '1'"]),
        ("teapot", ["no device 'teapot'"]),
        ("cuda:2", ["no device 'cuda:2'"]),
        (2, ["no device 'cuda:2'"]),
        (-1, ["no device 'cuda:-1'"]),
        ("cuda:x", ["no device 'cuda:x'"]),
        ("", ["no device ''"]),
        ([None, "cpu", "cpu"], ["no device 'None'"]),
        (["auto", "cpu", "cpu"], ["no device 'auto'"]),
        (True, ["no device 'True'"]),
        ({"cuda:0", "cuda:1"}, None),
        (1.5, ["no device '1.5'"]),
        ("xpu", ["no device 'xpu'"]),
    ],
)
def test_each_mistake_is_told(written: Any, expected: list[str] | None) -> None:
    found = problems_of(written)
    assert found == expected if expected is not None else len(found) == 1


def test_all_mistakes_are_told_at_once() -> None:
    found = problems_of({"mnist": "teapot", 0: "cpu", 7: "cuda:9", "svhn": "cuda:9"})
    assert found == [
        "member 'mnist' twice: as 'mnist' and as 0",
        "no member 7",
        "no device for 'dtd'",
        "no device 'teapot'",
        "no device 'cuda:9'",
    ]


def test_the_end_of_an_error_says_which_members_and_devices_there_are() -> None:
    assert allowed(NAMES, TWO_GPUS) == (
        "Members: 0 (mnist), 1 (svhn), 2 (dtd). Devices here: cpu (cpu:0, cpu:1, ... are lanes), cuda:0, cuda:1, meta."
    )


def test_a_machine_always_has_a_cpu_and_as_many_gpus_as_torch_says() -> None:
    present = present_devices()
    assert present["cpu"] == present["meta"] == UNLIMITED
    gpus = [device for device in accelerators(present) if device.startswith("cuda")]
    assert len(gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
