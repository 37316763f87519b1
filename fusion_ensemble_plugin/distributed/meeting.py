"""Where ranks meet before there is an ensemble: each waits for the others, and learns of their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from fusion_ensemble_plugin.distributed.failures import others_failed, others_missing, told
from fusion_ensemble_plugin.distributed.roll import NoAnswer, Roll, within


@dataclass
class Notes:
    """What ranks tell each other at one occasion.

    Attributes:
        message: What this rank tells.
        others: Rank to what each of them told, this one included.
    """

    message: Any = None
    others: dict[int, Any] = field(default_factory=dict)


class Meeting:
    """The ranks of this run; without a process group, this process alone.

    Args:
        timeout: Seconds that a rank waits for the others.
        alone: Meet nobody.

    Attributes:
        rank: This rank.
        world: The number of ranks.
        roll: Where they leave messages; None for a process alone.
        timeout: Seconds.
    """

    def __init__(self, timeout: float, alone: bool = False) -> None:
        together = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        self.timeout = timeout
        self.roll: Roll | None = None
        if self.world > 1:
            store = _get_default_store()
            count = store.add(f"fusion_ensemble_plugin/{self.rank}", 1)  # all ranks hold the same meetings in one order
            self.roll = Roll(store, f"fusion_ensemble_plugin/meeting{count}", self.rank, self.world)

    @contextmanager
    def together(self, doing: str) -> Iterator[Notes]:
        """Do something that every rank does, and leave when all have done it.

        Args:
            doing: What it is, for an error message.

        Raises:
            RankError: If another rank fails in it, or is not there in time.
        """
        notes = Notes()
        if self.roll is None:
            yield notes
            return
        try:
            yield notes
        except Exception as error:
            self.roll.post(doing, (told(error), None))
            self.roll.linger()
            raise
        self.roll.post(doing, (None, notes.message))
        found = self._found(self.roll, doing)
        notes.others = {rank: message for rank, (_, message) in found.items()}

    def _found(self, roll: Roll, doing: str) -> dict[int, tuple[str | None, Any]]:
        ranks = range(self.world)
        try:
            found: dict[int, tuple[str | None, Any]] = within(
                self.timeout + 5,
                lambda: roll.collect(doing, ranks, self.timeout, lambda message: message[0] is not None),
            )
        except NoAnswer as silence:
            raise others_missing(_plain, [0], doing, self.timeout, f"the ranks' store: {silence}") from None
        errors = {rank: text for rank, (text, _) in found.items() if text is not None}
        if errors:
            raise others_failed(_plain, errors, doing)
        missing = [rank for rank in ranks if rank not in found]
        if missing:
            roll.linger()
            raise others_missing(_plain, missing, doing, self.timeout)
        return found


def same_names(told_names: Mapping[int, Sequence[str]]) -> None:
    """Check that all ranks have the same pool.

    Raises:
        ValueError: If not; says which rank has which members.
    """
    if len({tuple(names) for names in told_names.values()}) > 1:
        listed = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in sorted(told_names.items()))
        raise ValueError(f"the ranks' model pools differ: {listed}")


def _plain(rank: int) -> str:
    return f"rank {rank}"
