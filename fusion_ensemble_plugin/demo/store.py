"""Where the benchmark's trained models are kept: a folder for each user, made once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from functools import cache
from pathlib import Path

import filelock
import platformdirs
from safetensors import SafetensorError, safe_open

from fusion_ensemble_plugin.demo.data import TASKS
from fusion_ensemble_plugin.demo.training import PRETRAINED, train

log = logging.getLogger(__name__)

SEED = 0
CACHE_VARIABLE = "FUSION_ENSEMBLE_CACHE"
"""The environment variable that names another cache folder."""
WAIT = 1800
"""Seconds to wait for another process that trains."""

_SOURCES = ("data.py", "models.py", "prompts.py", "training.py")


def model_folder(name: str) -> str:
    """Return the folder of a trained model, for ``from_pretrained``; trains all of them if there are none yet.

    Args:
        name: A task of the benchmark, or "_pretrained_".

    Raises:
        ValueError: If there is no such model.
    """
    if name not in (PRETRAINED, *TASKS):
        raise ValueError(f"no model {name!r} in the offline benchmark: there are {', '.join((PRETRAINED, *TASKS))}")
    return str(models_folder() / name)


@cache
def models_folder() -> Path:
    """Return the folder with all models, trained if need be.

    They are kept in ``$FUSION_ENSEMBLE_CACHE``, or else in the user's cache folder, under a key of the training code
    and the seed. Only one process trains; others wait for it. If the folder cannot be written, they are trained into a
    temporary folder that goes with this process.
    """
    root = Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("fusion-ensemble-plugin"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f"{_key()}.lock", timeout=WAIT):
            return _kept(root / _key())
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="fusion-ensemble-plugin-"))
        weakref.finalize(models_folder, shutil.rmtree, temporary, ignore_errors=True)
        log.warning(
            "the cache folder %s can't be used (%s): training into %s, for this process only", root, error, temporary
        )
        return _trained(temporary / _key())


def _kept(folder: Path) -> Path:
    """Return a folder of models: as it is if it is whole, else made anew."""
    if not folder.exists():
        return _trained(folder)
    fault = _fault(folder)
    if not fault:
        return folder
    log.warning("the models in %s are damaged (%s): training them anew", folder, fault)
    shutil.rmtree(folder)
    return _trained(folder)


def _trained(folder: Path) -> Path:
    """Train into a temporary folder beside this one and rename it, so that a folder of this name is always whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        train(temporary, SEED)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _fault(folder: Path) -> str:
    """Say what is wrong with a folder of models; "" if nothing is. Reads headers only."""
    for name in (PRETRAINED, *TASKS):
        try:
            json.loads((folder / name / "config.json").read_text())
            with safe_open(folder / name / "model.safetensors", framework="pt") as tensors:
                tensors.keys()
        except (OSError, ValueError, SafetensorError) as error:
            return f"{name}: {error}"
    return ""


def _key() -> str:
    code = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _SOURCES))
    return f"clip-vit-tiny_TA4-{code.hexdigest()[:12]}-seed{SEED}"
