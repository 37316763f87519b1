"""The folder of a saved ensemble: a new save takes the place of an old one at once, whenever it may be cut off.

A folder that does not exist is written beside its place and renamed. In one that exists, the weights of a save lie in a
folder of their own, ``members-<number>``, and the save is in force when its manifest replaces the old one, which is one
rename; files that others put there (a tokenizer, a model card) stay.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_ensemble_plugin.saving.manifest import FILE, read_manifest
from fusion_ensemble_plugin.saving.weights import sync

COMPANIONS = re.compile(
    r"(added_tokens|chat_template|(fast_)?tokenizer.*|special_tokens_map|preprocessor_config|processor_config|"
    r"image_processor_config|vocab.*|merges|spiece|sentencepiece.*|README)\.(json|jinja|txt|model|md)"
)
"""Files of processors and tokenizers, which FusionBench's pools write beside a model, some of them before it."""

_DATA = re.compile(r"members-[0-9a-f]{8}")
_UNFINISHED = re.compile(r"\.saving-[0-9a-f]{8}")
_DAY = 24 * 3600.0


def data_folder(folder: Path) -> Path:
    """Make the folder of one save's weights, under a name that no other save has."""
    data = folder / f"members-{secrets.token_hex(4)}"
    data.mkdir()
    return data


def check_target(path: Path) -> None:
    """Check that nothing but an ensemble would be replaced.

    Raises:
        ValueError: If there is a file, or a folder with other things in it.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file; an ensemble is saved as a folder")
    if not (path / FILE).is_file():
        strange = sorted(entry.name for entry in path.iterdir() if not _harmless(entry.name))
        if strange:
            shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
            raise ValueError(
                f"{path} is a folder that is not a saved ensemble (it holds {shown}); choose a new or an empty one"
            )


def check_space(path: Path, needed: int) -> None:
    """Check that there is room.

    Raises:
        OSError: If not.
    """
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
    if free < needed:
        raise OSError(f"the ensemble takes {needed:,} bytes, but only {free:,} are free where {path} lies")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give an empty folder to write a save into; when that is done, put it in its place.

    If writing fails, nothing is left of it, and what was there before is as it was.
    """
    staging = path / _unfinished() if path.is_dir() else path.with_name(f".{path.name}{_unfinished()}")
    staging.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir()
    try:
        yield staging
        _publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _remove_abandoned(path)


def _publish(staging: Path, path: Path) -> None:
    sync(staging)
    if path.is_dir():
        replaced = _data_folders(path)
        for entry in staging.iterdir():
            if _DATA.fullmatch(entry.name):
                entry.rename(path / entry.name)
        sync(path)
        (staging / FILE).replace(path / FILE)
        sync(path)
        _remove(replaced)
    else:
        staging.rename(path)
        sync(path.parent)


def _data_folders(path: Path) -> set[Path]:
    """Return the folders of the weights that the present manifest names."""
    try:
        members = read_manifest(path).members
    except (OSError, ValueError):
        return set()
    tops = {Path(place).parts[0] for member in members for place in (member.folder, *member.files)}
    return {path / top for top in tops if _DATA.fullmatch(top)}


def _remove_abandoned(path: Path) -> None:
    """Remove what saves have left that were cut off; young ones may still be at work."""
    beside = list(path.parent.glob(f".{path.name}.saving-*"))
    inside = [entry for entry in path.iterdir() if _DATA.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)]
    in_use = _data_folders(path)
    _remove(entry for entry in (*beside, *inside) if entry not in in_use and _age(entry) > _DAY)


def _age(entry: Path) -> float:
    try:
        return time.time() - entry.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _harmless(name: str) -> bool:
    return bool(COMPANIONS.fullmatch(name) or _DATA.fullmatch(name) or _UNFINISHED.fullmatch(name))


def _unfinished() -> str:
    return f".saving-{secrets.token_hex(4)}"
