"""What stands in an ensemble for a member that another process holds."""

from __future__ import annotations

from typing import Any

from torch import nn


class Absent(nn.Module):
    """A member that this process does not hold: it has no weights and is never run.

    It keeps the members' indices, and with them the keys of a state dict, as they are in one process.

    Args:
        holder: The rank that holds the member.
    """

    def __init__(self, holder: int) -> None:
        super().__init__()
        self.holder = holder

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ``RuntimeError``: only its holder can run it."""
        raise RuntimeError(f"this member is on rank {self.holder}; call the ensemble, on every rank")

    def extra_repr(self) -> str:
        """Name the rank in ``repr``."""
        return f"on rank {self.holder}"
