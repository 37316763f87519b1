"""How much memory the devices have for members, and which members are kept elsewhere if it is too little. Pure data."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

OFFLOAD = ("cpu", "disk")
"""Where members may be kept that do not fit on their device."""

_UNITS = {"": 1, **{f"{p}B": 1000**i for i, p in enumerate(["", "K", "M", "G", "T"])}}
_UNITS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
_SIZE = re.compile(r"^\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[A-Za-z]*)\s*$")


def parse_bytes(size: int | str) -> int:
    """Read a number of bytes such as ``20GiB``, ``1.5 GB`` or ``4096``.

    Raises:
        ValueError: If it is none.

    Examples:
        >>> parse_bytes("20GiB"), parse_bytes(4096)
        (21474836480, 4096)
    """
    match = _SIZE.match(str(size))
    units = {name.upper(): factor for name, factor in _UNITS.items()}
    if match is None or match["unit"].upper() not in units:
        raise ValueError(f"{size!r} is no number of bytes, such as 20GiB, 500MB or 4096")
    return int(float(match["number"]) * units[match["unit"].upper()])


def show_bytes(size: float) -> str:
    """Write a number of bytes for people.

    Examples:
        >>> show_bytes(21474836480), show_bytes(512)
        ('20.0 GiB', '512 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def memory_of(device: str) -> str:
    """Return whose memory a placement's device uses: all CPU lanes share the host's.

    Examples:
        >>> memory_of("cpu:3"), memory_of("cuda:1")
        ('cpu', 'cuda:1')
    """
    return "cpu" if device.startswith("cpu") else device


def bounds(max_memory: Mapping[Any, Any] | None, present: Sequence[str], problems: list[str]) -> dict[str, int]:
    """Read the user's ``max_memory``, noting what is wrong with it.

    Args:
        max_memory: Device to bytes, such as ``{"cuda:0": "20GiB", "cpu": "64GiB"}``.
        present: The devices there are.
        problems: Gets a line for each mistake.
    """
    if max_memory is not None and not isinstance(max_memory, Mapping):
        problems.append(f"max_memory={max_memory!r} is not a mapping from device to bytes")
        return {}
    read: dict[str, int] = {}
    for key, size in (max_memory or {}).items():
        device = _spelled(key, present)
        if device != "cpu" and device not in present:
            problems.append(f"max_memory for {key!r}, which is not here")
        if device in read:
            problems.append(f"max_memory for {device!r} twice")
        try:
            read[device] = parse_bytes(size)
        except ValueError as error:
            problems.append(f"max_memory for {key!r}: {error}")
    return read


def _spelled(key: Any, present: Sequence[str]) -> str:
    """Spell a bound's device as placements do: a bare number or type is an accelerator's, all lanes are the CPU's."""
    text = str(key)
    if text.isdecimal():
        return f"{present[0].partition(':')[0] if present else 'cuda'}:{text}"
    if re.fullmatch(r"cpu(:\d+)?", text):
        return "cpu"
    return text if ":" in text else f"{text}:0"


def room_for(device: str, bound: Mapping[str, int]) -> int:
    """Return the bytes that members may take on a device: what is free now, or less if the user says so."""
    memory = memory_of(device)
    free = _free(memory)
    return min(free, bound[memory]) if memory in bound else free


def choose_offloaded(
    sizes: Sequence[int], devices: Sequence[str], room: Mapping[str, int], names: Sequence[str]
) -> tuple[int, ...]:
    """Choose the members to keep off their device: in the order of the members, those for which no room is left.

    Members kept off a device pass through it, one after another. Room is left for one such member for each CPU lane,
    and for two on an accelerator: one computes while the next one is copied.

    Args:
        sizes: Bytes of each member.
        devices: The device of each member.
        room: Bytes that members may take in each memory; one that is not there is without limit.
        names: What the members are called in errors.

    Raises:
        ValueError: If there is no room for even these; says for which member and by how much.

    Examples:
        >>> choose_offloaded([10, 10, 10, 10], ["cuda:0"] * 4, {"cuda:0": 35}, "abcd")
        (1, 2, 3)
    """
    offloaded: list[int] = []
    for memory in dict.fromkeys(map(memory_of, devices)):
        here = [index for index, device in enumerate(devices) if memory_of(device) == memory]
        if memory not in room or sum(sizes[index] for index in here) <= room[memory]:
            continue
        largest = max(here, key=lambda index: sizes[index])
        slots = len({devices[index] for index in here}) if memory == "cpu" else 2
        left = room[memory] - slots * sizes[largest]
        if left < 0:
            needed = f"{show_bytes(slots * sizes[largest])}, {slots} times {names[largest]!r}, the largest"
            raise ValueError(
                f"{memory} has room for {show_bytes(room[memory])}; offloading needs {needed}: "
                f"{show_bytes(-left)} too little"
            )
        for index in here:
            if sizes[index] > left:
                offloaded.append(index)
            else:
                left -= sizes[index]
    return tuple(sorted(offloaded))


def return_freed() -> None:
    """Give memory that was freed back to the system.

    The C library keeps freed blocks that lie between blocks in use. Weights below its limit for mappings (32 MiB) are
    such blocks: without this, members that have left the CPU would go on taking its memory.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # not the GNU C library


def _free(memory: str) -> int:
    import torch

    if memory == "cpu":
        return int(psutil.virtual_memory().available)
    if memory.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(memory))[0])
    return 1 << 62  # no driver tells; the user's bound is all there is
