"""The store of members' outputs: memory first, then files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fusion_ensemble_plugin.cache.files import NotAsFile, Unreadable, read, write
from fusion_ensemble_plugin.memory import parse_bytes, show_bytes
from fusion_ensemble_plugin.tree import flatten, map_leaves

log = logging.getLogger(__name__)

CACHES = ("memory", "disk")
"""Values of the option ``cache``; None keeps nothing."""

MARK = "fusion-ensemble-cache.json"
"""The file by which a folder is known to be one of these caches."""


class OutputCache:
    """Members' outputs by the digest of all that they depend on; exact, because what differs has another digest.

    What exceeds the memory goes to files. All methods may be called from any thread.

    Args:
        memory: Bytes of outputs kept in CPU memory.
        folder: Where files go, and stay; None for a temporary folder that goes with this object.

    Attributes:
        hits: How often an output was there.
        misses: How often it was not.
    """

    def __init__(self, memory: int, folder: Path | None = None) -> None:
        self._memory = memory
        self._lasting = folder is not None
        self._folder = folder
        self._kept: dict[str, Any] = {}
        self._lock = Lock()
        self._writes = True
        self._told: set[str] = set()
        self.hits = self.misses = 0

    def get(self, key: str) -> Any:
        """Return a copy of what is kept, on the CPU; raises ``KeyError`` if nothing is."""
        with self._lock:
            found = self._kept.get(key, self)
        if found is self:
            found = self._read(key)
        with self._lock:
            self.hits += found is not self
            self.misses += found is self
        if found is self:
            raise KeyError(key)
        return map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, found)

    def put(self, key: str, output: Any) -> None:
        """Keep a copy of an output, unless it is already there or can't be kept."""
        size = output_bytes(output)
        if size is None:
            return self.tell("some outputs hold more than tensors, numbers and text, or need gradients: not kept")
        with self._lock:
            fits = key not in self._kept and size <= self._memory
            self._memory -= size if fits else 0
            if fits:
                self._kept[key] = _on_cpu(output)
        if self._lasting or not fits:
            self._write(key, output)

    def tell(self, problem: str) -> None:
        """Warn of something, once."""
        with self._lock:
            new = problem not in self._told
            self._told.add(problem)
        if new:
            log.warning("cache of members' outputs: %s", problem)

    def _read(self, key: str) -> Any:
        """Return what a file holds; this object itself if there is none, or none that can be trusted."""
        if self._folder is None:
            return self
        path = self._path(key)
        try:
            return read(path, key)
        except FileNotFoundError:
            return self
        except Unreadable as problem:
            log.warning("cache of members' outputs: %s is dropped and computed anew: %s", path, problem)
            self._drop(path)
            return self

    def _write(self, key: str, output: Any) -> None:
        if not self._writes:
            return
        try:
            if self._folder is None:
                self._folder = _temporary_folder(self)
            path = self._path(key)
            if not path.exists():
                write(path, key, output)
        except NotAsFile as problem:
            self.tell(f"no file can hold {problem}; what exceeds the memory is computed anew")
        except OSError as error:
            self._writes = False
            self.tell(
                f"can't write to {self._folder}: {error}. The run goes on: what is kept already is used, more is kept "
                "in memory as far as cache_bytes allows, and computed anew beyond that"
            )

    def _drop(self, path: Path) -> None:
        try:
            path.unlink()
        except OSError as error:
            self.tell(f"can't delete damaged files from {self._folder}: {error}")

    def _path(self, key: str) -> Path:
        return (self._folder or Path()) / key[:2] / f"{key}.safetensors"

    def __deepcopy__(self, memo: dict[int, Any]) -> OutputCache:
        """Serve the copies of an ensemble too, which some task pools make."""
        return self

    def __reduce__(self) -> Any:
        """Pickle the options, not what is kept."""
        return (OutputCache, (self._memory, self._folder if self._lasting else None))


def make_cache(cache: Any, cache_bytes: Any = "4GiB", cache_dir: Any = None) -> OutputCache | None:
    """Make the cache that options ask for.

    Args:
        cache: None, "memory" (files are temporary) or "disk" (files stay for later runs).
        cache_bytes: CPU memory for outputs, such as "4GiB".
        cache_dir: The folder for files; None for one in the user's cache folder.

    Raises:
        ValueError: If an option is wrong, or the folder is another thing's.
    """
    check_cache(cache, cache_bytes, cache_dir)
    if cache is None:
        return None
    lasting = cache == "disk" or bool(cache_dir)
    folder = _folder(cache_dir)
    if lasting:
        _mark(folder)
    return OutputCache(parse_bytes(cache_bytes), folder if lasting else None)


def check_cache(cache: Any, cache_bytes: Any = "4GiB", cache_dir: Any = None) -> None:
    """Check the options of `make_cache`, and write nothing.

    Raises:
        ValueError: If one is wrong; the message lists all that are.
    """
    problems = []
    if cache not in (None, *CACHES):
        problems.append(f"cache={cache!r}: needed is null, {' or '.join(CACHES)}")
    try:
        parse_bytes(cache_bytes)
    except ValueError as error:
        problems.append(f"cache_bytes: {error}")
    if cache is None and cache_dir:
        problems.append(f"cache_dir={str(cache_dir)!r} without a cache: set cache=memory or cache=disk")
    if cache == "disk" or cache_dir:
        problems += _folder_problems(_folder(cache_dir))
    if problems:
        raise ValueError("; ".join(problems))


def _folder(cache_dir: Any) -> Path:
    return Path(str(cache_dir)).expanduser() if cache_dir else user_folder() / "outputs"


def user_folder() -> Path:
    """Return the folder in which this package keeps what may be deleted at any time.

    It is ``$FUSION_ENSEMBLE_CACHE``, or else in the user's cache folder.
    """
    given = os.environ.get("FUSION_ENSEMBLE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "fusion-ensemble-plugin"


def output_bytes(output: Any) -> int | None:
    """Return the memory of an output's tensors; None if it holds anything that can't be kept."""
    leaves = flatten(output)[0]
    if any(not isinstance(leaf, (Tensor, bool, int, float, str, type(None))) for leaf in leaves):
        return None
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(tensor.requires_grad or tensor.is_meta for tensor in tensors):
        return None
    return sum(tensor.nbytes for tensor in tensors)


def key_of(parts: list[str]) -> str:
    """Return the name under which an output is kept."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _on_cpu(output: Any) -> Any:
    with torch.inference_mode(False):  # may be kept longer than the mode
        return map_leaves(lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, output)


def _temporary_folder(owner: OutputCache) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fusion-ensemble-cache-"))
    weakref.finalize(owner, _remove, folder, os.getpid())
    log.info("members' outputs that exceed the memory go to %s until the run ends", folder)
    return folder


def _remove(folder: Path, owner: int) -> None:
    """Delete the folder; not in a forked process, whose parent still needs it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _folder_problems(folder: Path) -> list[str]:
    if folder.exists() and not folder.is_dir():
        return [f"cache_dir={str(folder)!r} is a file; a folder is needed"]
    if folder.is_dir() and not (folder / MARK).exists() and any(folder.iterdir()):
        return [f"cache_dir={str(folder)!r} has other files and is no cache of members' outputs; name an empty folder"]
    return []


def _mark(folder: Path) -> None:
    """Make the folder known as a cache; one that can't be written to is told of at the first output."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).exists():
            (folder / MARK).write_text(json.dumps({"what": "outputs of ensemble members; may be deleted at any time"}))
        free = shutil.disk_usage(folder).free
        log.info("members' outputs are kept in %s (%s free)", folder, show_bytes(free))
    except OSError as error:
        log.warning("cache of members' outputs: %s can't be written to: %s", folder, error)
