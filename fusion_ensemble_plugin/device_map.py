"""What a user writes to say where members go, read into one device a member. Pure data.

Nothing here or in `fusion_ensemble_plugin.placement` loads a model or touches a tensor, so every mistake is told before
any load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusion_ensemble_plugin.naming import member_index

DeviceMap = None | str | int | Sequence[Any] | Mapping[Any, Any]
"""``None``, ``"auto"``, one device, a list of one device a member, or a mapping from member index or name to device."""

UNLIMITED = -1
"""The number of devices of a type that has no fixed number: CPU lanes, and ``meta``."""

_DEVICE = re.compile(r"^(?P<type>[a-z_]+[a-z0-9_]*?)(:(?P<index>\d+))?$")


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


def accelerators(present: Mapping[str, int]) -> list[str]:
    """Name every accelerator, e.g. ``["cuda:0", "cuda:1"]``."""
    return [f"{kind}:{i}" for kind, count in present.items() if count > 0 for i in range(count)]


def written_devices(
    device_map: DeviceMap, names: Sequence[str], present: Mapping[str, int], problems: list[str]
) -> list[str]:
    """Return the device of each member as a map says it.

    Args:
        device_map: Any device map but "auto".
        names: The members' names, in order.
        present: Device type to number of devices.
        problems: Gets a line for each mistake; the result means something only if there is none.
    """
    if device_map is None:
        return []
    wanted = dict(_entries(device_map, names, problems))
    missing = [name for index, name in enumerate(names) if index not in wanted]
    if missing:
        problems.append(f"no device for {_listed(missing)}")
    return [_device(wanted[index], present, problems) for index in sorted(wanted)]


def _entries(device_map: DeviceMap, names: Sequence[str], problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield (member index, written device), collecting what is wrong with the members."""
    if isinstance(device_map, Mapping):
        seen: dict[int, Any] = {}
        for key, device in device_map.items():
            index = member_index(key, names)
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


def allowed(names: Sequence[str], present: Mapping[str, int]) -> str:
    """Say which members and devices there are, for the end of an error message."""
    members = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
    devices = ", ".join(["cpu (cpu:0, cpu:1, ... are lanes)", *accelerators(present), "meta"])
    return f"Members: {members}. Devices here: {devices}."
