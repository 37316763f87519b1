"""Which member runs where: what a user writes (a *device map*) and what it means (a *placement*).

Pure data. Nothing here loads a model or touches a tensor, so every mistake in a device map is told before any load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DeviceMap = None | str | int | Sequence[Any] | Mapping[Any, Any]
"""``None``, ``"auto"``, one device, a list of one device a member, or a mapping from member index or name to device."""

UNLIMITED = -1
"""The number of devices of a type that has no fixed number: CPU lanes, and ``meta``."""

_DEVICE = re.compile(r"^(?P<type>[a-z_]+[a-z0-9_]*?)(:(?P<index>\d+))?$")


@dataclass(frozen=True)
class Placement:
    """One device for each member, in the order of the members.

    A device is written as torch writes it, always with its index (``cuda:0``); ``cpu:0``, ``cpu:1``, ... are CPU lanes:
    each is a worker of its own with its share of the cores.

    Examples:
        >>> Placement(("cpu:0", "cpu:1", "cpu:0")).groups
        {'cpu:0': (0, 2), 'cpu:1': (1,)}
    """

    devices: tuple[str, ...]

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The members of each device, devices in the order of their first member."""
        groups: dict[str, tuple[int, ...]] = {}
        for index, device in enumerate(self.devices):
            groups[device] = (*groups.get(device, ()), index)
        return groups


def present_devices() -> dict[str, int]:
    """Count the devices of each type that this process can use.

    Returns:
        Device type to number of devices; ``UNLIMITED`` for ``cpu`` (any number of lanes) and ``meta``.

    Examples:
        >>> present_devices()["cpu"] == UNLIMITED
        True
    """
    import torch

    present = {"cpu": UNLIMITED, "meta": UNLIMITED}
    for kind in ("cuda", "xpu", "mps"):
        backend = getattr(torch, kind, None)
        if backend is not None and backend.is_available():
            present[kind] = backend.device_count()
    return present


def resolve(
    device_map: DeviceMap, names: Sequence[str], sizes: Sequence[int] | None = None, option: str = "device_map"
) -> Placement | None:
    """Turn a device map into a placement.

    Args:
        device_map: What the user wrote; see `DeviceMap`.
        names: The members' names, in order.
        sizes: Bytes of each member, for ``"auto"``; without them all members count alike.
        option: What the user calls this map, for the error message.

    Returns:
        One device a member, or ``None`` for ``None``: the members stay where they are.

    Raises:
        ValueError: If the map names a member or a device that does not exist, names a member twice, or leaves one out.
            The message lists every problem.

    Examples:
        >>> resolve({"svhn": "cpu:1", 0: "cpu:0"}, ["mnist", "svhn"])
        Placement(devices=('cpu:0', 'cpu:1'))
    """
    if device_map is None:
        return None
    present = present_devices()
    if isinstance(device_map, str) and device_map == "auto":
        return _balance(sizes or [1] * len(names), accelerators(present) or ["cpu:0"])
    problems: list[str] = []
    wanted = dict(_entries(device_map, names, problems))
    devices = {index: _device(wanted[index], present, problems) for index in sorted(wanted)}
    missing = [names[i] for i in range(len(names)) if i not in wanted]
    if missing:
        problems.append(f"no device for {_listed(missing)}")
    if problems:
        raise ValueError(f"{option}={device_map!s}: {'; '.join(problems)}. {_allowed(names, present)}")
    return Placement(tuple(devices[i] for i in range(len(names))))


def accelerators(present: Mapping[str, int]) -> list[str]:
    """Name every accelerator, e.g. ``["cuda:0", "cuda:1"]``."""
    return [f"{kind}:{i}" for kind, count in present.items() if count > 0 for i in range(count)]


def _balance(sizes: Sequence[int], devices: Sequence[str]) -> Placement:
    """Give each member, the largest first, to the device with the fewest bytes so far."""
    load = dict.fromkeys(devices, 0)
    chosen: dict[int, str] = {}
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        device = min(load, key=lambda d: load[d])
        chosen[index] = device
        load[device] += sizes[index]
    return Placement(tuple(chosen[i] for i in range(len(sizes))))


def _entries(device_map: DeviceMap, names: Sequence[str], problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield (member index, written device), collecting what is wrong with the members."""
    if isinstance(device_map, Mapping):
        seen: dict[int, Any] = {}
        for key, device in device_map.items():
            index = _member(key, names)
            if index is None:
                problems.append(f"no member {key!r}")
            elif index in seen:
                problems.append(f"member {names[index]!r} twice: as {seen[index]!r} and as {key!r}")
            else:
                seen[index] = key
                yield index, device
    elif isinstance(device_map, Sequence) and not isinstance(device_map, str):
        if len(device_map) > len(names):
            problems.append(f"{len(device_map)} devices for {len(names)} members")
        yield from enumerate(device_map[: len(names)])
    else:
        yield from ((index, device_map) for index in range(len(names)))


def _member(key: Any, names: Sequence[str]) -> int | None:
    """Find the index of a member by its name, else by its index (an int, or its digits: Hydra may give either)."""
    if isinstance(key, str) and key in names:
        return list(names).index(key)
    if isinstance(key, int) or (isinstance(key, str) and key.isdecimal()):
        index = int(key)
        return index if not isinstance(key, bool) and 0 <= index < len(names) else None
    return None


def _device(written: Any, present: Mapping[str, int], problems: list[str]) -> str:
    """Spell a device in full, or note why there is no such device."""
    text = _spelled(written, present)
    match = _DEVICE.match(text)
    kind, index = (match["type"], int(match["index"] or 0)) if match else (text, 0)
    count = present.get(kind, 0)
    if count == 0 or (count != UNLIMITED and index >= count):
        problem = f"no device {text!r}"
        if problem not in problems:
            problems.append(problem)
    return kind if kind == "meta" else f"{kind}:{index}"


def _spelled(written: Any, present: Mapping[str, int]) -> str:
    """Read a bare number as torch does: the index of an accelerator."""
    if isinstance(written, int) and not isinstance(written, bool):
        kind = next((name for name, count in present.items() if count > 0), "cuda")
        return f"{kind}:{written}"
    return str(written)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _allowed(names: Sequence[str], present: Mapping[str, int]) -> str:
    members = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    devices = ", ".join(["cpu (cpu:0, cpu:1, ... are lanes)", *accelerators(present), "meta"])
    return f"Members: {members}. Devices here: {devices}."
