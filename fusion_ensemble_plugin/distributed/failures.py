"""What a rank says when another one has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Describe = Callable[[int], str]
"""Names a rank and its members."""


class RankError(RuntimeError):
    """Another rank failed, is gone, or did not arrive. The message names it and its members."""


def told(error: BaseException) -> str:
    """Write an error as other ranks are to read it: type, message and notes."""
    notes = getattr(error, "__notes__", [])
    return "\n".join([f"{type(error).__name__}: {error}", *map(str, notes)])


def others_failed(describe: Describe, errors: Mapping[int, str], doing: str) -> RankError:
    """Make the error that names ranks which told that they failed, with what each one told."""
    return RankError("\n".join(f"{describe(rank)} failed in {doing}: {text}" for rank, text in errors.items()))


def others_missing(
    describe: Describe, missing: Sequence[int], doing: str, seconds: float, cause: str = ""
) -> RankError:
    """Make the error that names ranks from which nothing was heard."""
    seen = f" ({cause})" if cause else ""
    if not missing:
        return RankError(f"the connection between the ranks broke in {doing}{seen}")
    who = " and ".join(map(describe, missing))
    return RankError(f"{who} did not answer in {doing}: gone, or not there within {seconds:g} s{seen}")
