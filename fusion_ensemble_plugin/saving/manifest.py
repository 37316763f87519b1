"""``ensemble.json``: what a saved ensemble's members are, where their weights lie, and how their outputs become one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

FILE = "ensemble.json"
FORMAT = "fusion-ensemble"
VERSION = 1
"""The newest version of the format that this package reads, and the one that it writes."""

TRANSFORMERS, ENSEMBLE, MODULE = "transformers", "ensemble", "module"


_ALWAYS = ("class_name", "name", "weight", "kind", "folder", "reducer")
"""The keys that are never left out; others are where they say nothing."""


@dataclass(frozen=True)
class SavedMember:
    """One member.

    Attributes:
        name: Its name.
        weight: Its weight.
        kind: "transformers" (made anew from its config), "ensemble" (a saved ensemble itself), or "module" (weights
            alone: whoever loads it gives the module).
        class_name: The class; for transformers models its name there.
        folder: Where its config is, or the saved ensemble.
        files: Its safetensors files, which members with the same weights share, and their bytes.
        ties: Second names of tensors, and the first one, under which they are stored.
        attention: The attention implementation, as transformers calls it; by the config's part where there are several.
        logits_only: Whether its ``forward`` returns the bare logits, as FusionBench's image classifiers do.
        target_modules: The submodules that FusionBench's methods merge; None for all.
    """

    name: str
    weight: float
    kind: str
    class_name: str
    folder: str
    files: dict[str, int] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    attention: dict[str, str] | None = None
    logits_only: bool = False
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class Manifest:
    """A saved ensemble.

    Attributes:
        class_name: The ensemble's class, ``module:name``.
        members: Its members, in order.
        reducer: The reducer's name, or a mapping of ``name`` and options; None if it had no name.
        output_keys: The fields of the output that are kept; None for all.
        autocast: The dtype that members run under; None for no autocast.
        versions: What it was saved with.
    """

    class_name: str
    members: tuple[SavedMember, ...]
    reducer: Any = None
    output_keys: list[Any] | None = None
    autocast: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(member.name for member in self.members)

    def write(self, folder: Path) -> Path:
        """Write it into a folder."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        data["members"] = [
            {key: value for key, value in entry.items() if key in _ALWAYS or value} for entry in data["members"]
        ]
        (folder / FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return folder / FILE


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and check it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of a newer version, or names a path outside the folder; lists all that is wrong.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no saved ensemble: there is no {FILE} in it")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f'{file} describes no saved ensemble: "format" is not "{FORMAT}"')
    version = data.get("version")
    if not isinstance(version, int) or version > VERSION:
        by = data.get("versions", {}).get("fusion-ensemble-plugin", "of another version")
        raise ValueError(
            f"{file} is of version {version!r}, written by fusion-ensemble-plugin {by}; this one reads versions up to "
            f"{VERSION}: install that version or a newer one"
        )
    problems: list[str] = []
    manifest = _manifest(data, problems)
    if problems:
        raise ValueError(f"{file} is damaged: {'; '.join(problems)}")
    return manifest


def _manifest(data: Mapping[str, Any], problems: list[str]) -> Manifest:
    listed = data.get("members")
    if not isinstance(listed, list) or not listed:
        problems.append("members: a list of at least one is needed")
        listed = []
    members = tuple(_member(index, entry, problems) for index, entry in enumerate(listed))
    names = [member.name for member in members]
    problems += [f"members: {name!r} twice" for name in sorted({n for n in names if names.count(n) > 1})]
    take = _Taker(data, "", problems)
    return Manifest(
        take("class_name", _text, ""),
        members,
        take("reducer", _reducer, None),
        take("output_keys", lambda value: value is None or isinstance(value, list), None),
        take("autocast", lambda value: value is None or _text(value), None),
        take("versions", lambda value: isinstance(value, dict), {}),
    )


def _member(index: int, entry: Any, problems: list[str]) -> SavedMember:
    take = _Taker(entry if isinstance(entry, dict) else {}, f"members[{index}].", problems)
    return SavedMember(
        take("name", _text, f"#{index}"),
        take("weight", _number, 1.0),
        take("kind", (TRANSFORMERS, ENSEMBLE, MODULE).__contains__, MODULE),
        take("class_name", _text, ""),
        take("folder", _inside, "."),
        take("files", lambda v: _mapping(v, int) and all(map(_inside, v)), {}),
        take("ties", lambda v: _mapping(v, str), {}),
        take("attention", lambda v: v is None or _mapping(v, str), None),
        take("logits_only", lambda v: isinstance(v, bool), False),
        take("target_modules", lambda v: v is None or (isinstance(v, list) and all(map(_text, v))), None),
    )


class _Taker:
    """Takes one checked value after another out of plain data; notes what is wrong."""

    def __init__(self, data: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._data, self._path, self._problems = data, path, problems

    def __call__(self, key: str, fits: Callable[[Any], bool], instead: Any) -> Any:
        if key not in self._data:
            if key in _ALWAYS:
                self._problems.append(f"no {self._path}{key}")
            return instead
        value = self._data[key]
        if fits(value):
            return value
        why = " (a path outside the folder)" if _leaves(value) else ""
        self._problems.append(f"{self._path}{key} is {value!r}{why}")
        return instead


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(item) is kind for item in value.values())


def _reducer(value: Any) -> bool:
    """A name, or a name with options: never anything to import."""
    return (
        value is None
        or _text(value)
        or (isinstance(value, dict) and _text(value.get("name")) and "_target_" not in value)
    )


def _inside(value: Any) -> bool:
    """Say whether it is a path that stays in the folder, in every system's way of writing."""
    if not _text(value) or "\\" in value or ":" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def _leaves(value: Any) -> bool:
    paths = list(value) if isinstance(value, dict) else [value]
    return any(_text(path) and ("/" in path or "\\" in path or ":" in path) and not _inside(path) for path in paths)
