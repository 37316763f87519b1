"""What is done already of a report: kept in a folder, so that the same command goes on where it was interrupted."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from fusion_ensemble_plugin.cache.files import NotAsFile, Unreadable, read, write
from fusion_ensemble_plugin.report.observe import Scores

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """What is known of one model after its evaluation.

    Attributes:
        report: What the task pool reported.
        scores: The class scores that were observed, by task.
    """

    report: Any
    scores: dict[str, Scores]


class Finished:
    """The models of one report that were evaluated.

    Args:
        folder: Where they are kept until the report is written; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, Evaluated] = {}

    def __getitem__(self, name: str) -> Evaluated:
        """Return a model's evaluation."""
        return self._known[name]

    def __contains__(self, name: str) -> bool:
        """Say whether a model was evaluated, in this run or in one that was interrupted."""
        if name not in self._known and self._folder is not None:
            self._recall(name, self._folder)
        return name in self._known

    def add(self, name: str, evaluated: Evaluated) -> None:
        """Keep an evaluation; if it can't be written, it is kept for this run."""
        self._known[name] = evaluated
        if self._folder is None:
            return
        scores = {task: list(found) for task, found in evaluated.scores.items()}
        try:
            write(_path(self._folder, name), name, {"report": json.dumps(evaluated.report), "scores": scores})
        except (OSError, TypeError, ValueError, NotAsFile) as error:
            log.warning(
                "what is done of the report can't be kept in %s (%s): an interrupted run starts anew",
                self._folder,
                error,
            )
            self._folder = None

    def clear(self) -> None:
        """Let go what was kept for a run after an interruption."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _recall(self, name: str, folder: Path) -> None:
        try:
            found: Mapping[str, Any] = read(_path(folder, name), name)
            scores = {task: Scores(*pair) for task, pair in found["scores"].items()}
            self._known[name] = Evaluated(json.loads(found["report"]), scores)
        except FileNotFoundError:
            pass
        except (Unreadable, KeyError, ValueError) as error:
            log.warning("%r is evaluated again: what an interrupted run has left of it is damaged (%s)", name, error)
            _path(folder, name).unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{sha256(name.encode()).hexdigest()[:32]}.safetensors"
