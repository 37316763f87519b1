"""Columns of text."""

from __future__ import annotations

from collections.abc import Sequence


def table(title: str, rows: Sequence[Sequence[str]], none: str = "none") -> str:
    """Lay out rows in columns below a title.

    Args:
        title: The line above.
        rows: Cells of text, the same number in each row.
        none: What stands there if there are no rows.

    Examples:
        >>> print(table("devices", [("cpu", "2 cores"), ("cuda:0", "78.0 GiB")]))
        devices
          cpu     2 cores
          cuda:0  78.0 GiB
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([title, *(f"  {line}" for line in lines or [none])])
