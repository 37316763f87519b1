"""How options name a member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def member_index(key: Any, names: Sequence[str]) -> int | None:
    """Find a member by its name, else by its index: an int, or its digits, since Hydra may give either.

    Returns:
        The index; None if there is no such member.

    Examples:
        >>> [member_index(key, ["svhn", "dtd"]) for key in ("dtd", 0, "0", 2, True)]
        [1, 0, 0, None, None]
    """
    if isinstance(key, str) and key in names:
        return list(names).index(key)
    if isinstance(key, bool) or not (isinstance(key, int) or (isinstance(key, str) and key.isdecimal())):
        return None
    return int(key) if 0 <= int(key) < len(names) else None
