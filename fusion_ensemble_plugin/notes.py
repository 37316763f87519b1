"""Notes on errors: which member, on which device."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def add_note(error: BaseException, note: str) -> None:
    """Attach a note to an error; on Python 3.10, whose tracebacks show no notes, log it too."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__notes__ = [*getattr(error, "__notes__", []), note]
        log.error("%s: %s", note, error)
