"""Messages that ranks leave for one another in the store of the process group.

Collectives fail without saying which rank is at fault. The store (torch's own, through which the ranks found each
other) still works then: who is alive leaves a message there, and who has left none is the one that is missing.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store

GRACE = 1.0
"""Seconds that the last missing rank gets when all others have answered."""


class Roll:
    """The messages of some ranks.

    Args:
        store: The process group's store.
        name: Sets these messages apart from all others in it.
        rank: This rank.
        world: The number of ranks.
    """

    def __init__(self, store: Store, name: str, rank: int, world: int) -> None:
        self._store = PrefixStore(name, store)
        self._rank = rank
        self._world = world

    def post(self, occasion: str, message: Any) -> None:
        """Leave a message."""
        self._store.set(f"{occasion}/{self._rank}", pickle.dumps(message))  # type: ignore[arg-type]  # bytes do

    def collect(
        self, occasion: str, ranks: Sequence[int], seconds: float, enough: Callable[[Any], bool] = lambda message: False
    ) -> dict[int, Any]:
        """Wait for the messages of ranks.

        Args:
            occasion: What they are about.
            ranks: Whose.
            seconds: How long to wait.
            enough: Says of a message that one need not wait for the others.

        Returns:
            Rank to message, of those that came in time.
        """
        found: dict[int, Any] = {}
        wait, deadline = 0.005, time.monotonic() + seconds
        while True:
            for rank in ranks:
                if rank not in found and self._store.check([f"{occasion}/{rank}"]):
                    found[rank] = pickle.loads(self._store.get(f"{occasion}/{rank}"))
            if len(found) == len(ranks) or any(map(enough, found.values())) or time.monotonic() > deadline:
                return found
            time.sleep(wait)
            wait = min(wait * 1.5, 0.25)

    def call(self, occasion: str, message: Any, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """Leave a message when something has gone wrong, and find out who else does.

        Waits no longer than it takes to be sure: when one rank alone is missing, it gets only `GRACE`.

        Returns:
            Rank to message.
        """
        self.post(occasion, message)
        deadline = time.monotonic() + seconds
        while True:
            found = self.collect(occasion, ranks, 0)
            if len(ranks) - len(found) <= 1 or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        found = self.collect(occasion, ranks, GRACE)
        self.linger()
        return found

    def linger(self) -> None:
        """Stay a moment on the rank that may hold the store, so that the others can still read it."""
        if self._rank == 0 and self._world > 1:
            time.sleep(GRACE)


class NoAnswer(Exception):
    """The store does not answer."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call something that may never return; a store on a stopped machine blocks for good.

    Raises:
        NoAnswer: If it takes longer, or the store is gone.
    """
    results: list[Any] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True, name="roll-call")
    thread.start()
    thread.join(seconds)
    if not results:
        raise NoAnswer(str(errors[0]) if errors else f"no answer within {seconds:.0f} s")
    return results[0]
