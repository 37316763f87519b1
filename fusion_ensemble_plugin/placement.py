"""Which member runs where: what a device map means, and what memory allows. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_ensemble_plugin.device_map import DeviceMap, accelerators, allowed, present_devices, written_devices
from fusion_ensemble_plugin.memory import OFFLOAD, bounds, choose_offloaded, memory_of, room_for, show_bytes


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
    offloaded: tuple[int, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The members of each device, devices in the order of their first member."""
        groups: dict[str, tuple[int, ...]] = {}
        for index, device in enumerate(self.devices):
            groups[device] = (*groups.get(device, ()), index)
        return groups


def resolve(
    device_map: DeviceMap | Placement,
    names: Sequence[str],
    sizes: Sequence[int] | None = None,
    *,
    lanes: int | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload: str | None = None,
    option: str = "device_map",
) -> Placement | None:
    """Turn a device map into a placement.

    Args:
        device_map: What the user wrote; see `DeviceMap`. A placement of as many members is returned as it is.
        names: The members' names, in order.
        sizes: Bytes of each member, for "auto" and for memory bounds; without them all members count alike.
        lanes: With "auto" on a machine without accelerators: the number of CPU lanes; default one.
        max_memory: Bytes that members may take on a device, such as ``{"cuda:0": "20GiB", "cpu": "64GiB"}``.
        offload: Where members are kept that do not fit: "cpu", "disk" or None.
        option: What the user calls this map, for the error message.

    Returns:
        One device a member, or ``None`` for ``None``: the members stay where they are.

    Raises:
        ValueError: If the map names a member or a device that does not exist, names a member twice, or leaves one out,
            or if there is too little memory. The message lists every problem.

    Examples:
        >>> resolve({"svhn": "cpu:1", 0: "cpu:0"}, ["mnist", "svhn"])
        Placement(devices=('cpu:0', 'cpu:1'), offloaded=())
    """
    if isinstance(device_map, Placement):
        if len(device_map.devices) != len(names):
            raise ValueError(f"{option} places {len(device_map.devices)} members, but there are {len(names)}")
        return device_map
    present = present_devices()
    problems = _wrong_options(device_map, lanes, max_memory, offload)
    bound = bounds(max_memory, accelerators(present), problems)
    auto = isinstance(device_map, str) and device_map == "auto"
    devices = [] if auto else written_devices(device_map, names, present, problems)
    if problems:
        raise ValueError(f"{option}={device_map!s}: {'; '.join(problems)}. {allowed(names, present)}")
    if device_map is None:
        return None
    if auto:
        devices = _balanced(sizes, len(names), accelerators(present) or [f"cpu:{i}" for i in range(lanes or 1)], bound)
    try:
        return Placement(tuple(devices), _offloaded(sizes, devices, bound, offload, names))
    except ValueError as error:
        raise ValueError(f"{option}={device_map!s}: {error}. {allowed(names, present)}") from None


def describe(placement: Placement, names: Sequence[str], sizes: Sequence[int] | None = None) -> str:
    """Write a placement as a table: each member's device, bytes and share of all.

    Examples:
        >>> print(describe(Placement(("cpu:0", "cpu:1"), (1,)), ["mnist", "svhn"], [1024, 3072]))
        member  device  bytes    share
        mnist   cpu:0   1.0 KiB  25.0 %
        svhn    cpu:1   3.0 KiB  75.0 %  offloaded
    """
    rows = [("member", "device", "bytes", "share", "")]
    for index, (name, device) in enumerate(zip(names, placement.devices)):
        size = show_bytes(sizes[index]) if sizes else "?"
        share = f"{100 * sizes[index] / max(1, sum(sizes)):.1f} %" if sizes else "?"
        rows.append((name, device, size, share, "offloaded" if index in placement.offloaded else ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _wrong_options(device_map: DeviceMap, lanes: Any, max_memory: Any, offload: str | None) -> list[str]:
    """List what is wrong with the options that go with a device map."""
    problems: list[str] = []
    if lanes is not None and (not isinstance(lanes, int) or isinstance(lanes, bool) or lanes <= 0):
        problems.append(f"lanes={lanes!r} is not a whole number above 0")
    if lanes is not None and device_map != "auto":
        problems.append("lanes go with device_map=auto only; write the lanes into the map instead (cpu:0, cpu:1, ...)")
    if offload not in (None, *OFFLOAD):
        problems.append(f"offload={offload!r} is not one of {', '.join(OFFLOAD)}")
    if device_map is None and (max_memory is not None or offload is not None):
        problems.append("max_memory and offload need a device_map; without one the members stay where they are")
    return problems


def _balanced(sizes: Sequence[int] | None, count: int, devices: Sequence[str], bound: Mapping[str, int]) -> list[str]:
    """Give each member, the largest first, to the device with the fewest bytes so far that still has room for it."""
    room = {device: room_for(device, bound) if sizes else count for device in devices}
    sizes = sizes or [1] * count
    load = dict.fromkeys(devices, 0)
    chosen: dict[int, str] = {}
    for index in sorted(range(count), key=lambda i: -sizes[i]):
        roomy = [device for device in devices if load[device] + sizes[index] <= room[device]]
        chosen[index] = min(roomy or devices, key=lambda device: load[device])
        load[chosen[index]] += sizes[index]
    return [chosen[index] for index in range(count)]


def _offloaded(
    sizes: Sequence[int] | None,
    devices: Sequence[str],
    bound: Mapping[str, int],
    offload: str | None,
    names: Sequence[str],
) -> tuple[int, ...]:
    """Return the members that do not fit.

    Raises:
        ValueError: If some don't and nothing may be offloaded, or if there is no room even so.
    """
    if sizes is None or not (bound or offload):
        return ()
    memories = [memory_of(device) for device in devices]
    # members kept in the host's memory need no visit to it: only the disk takes any off the CPU
    bounded = {m: room_for(m, bound) for m in memories if m in bound or (offload and m != "cpu") or offload == "disk"}
    taken = {memory: sum(size for size, m in zip(sizes, memories) if m == memory) for memory in bounded}
    short = [m for m in bounded if taken[m] > bounded[m] and (offload is None or (offload == "cpu" and m == "cpu"))]
    if short:
        lack = [f"{m} has room for {show_bytes(bounded[m])}, its members take {show_bytes(taken[m])}" for m in short]
        raise ValueError(f"too little memory: {'; '.join(lack)}; {_remedy(sizes, bounded, memories, short, names)}")
    return choose_offloaded(sizes, devices, bounded, names)


def _remedy(
    sizes: Sequence[int],
    room: Mapping[str, int],
    memories: Sequence[str],
    short: Sequence[str],
    names: Sequence[str],
) -> str:
    """Say what would help: the disk, or only more room where not even the largest member fits."""
    index = max((i for i, memory in enumerate(memories) if memory in short), key=lambda i: sizes[i])
    lack = sizes[index] - room[memories[index]]
    if lack > 0:
        return f"not even {names[index]!r}, the largest, fits: {show_bytes(lack)} too little"
    return "offload=disk (or cpu, for an accelerator) keeps elsewhere what does not fit"
