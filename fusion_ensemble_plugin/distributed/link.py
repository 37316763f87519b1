"""What connects the ranks of a team: exchanges of trees of tensors, and of errors, that end in time.

An exchange starts with a notice of a few numbers from each rank. It tells the sizes of what follows, and whether a
rank has finished its data or failed, so that all go on, or stop, together. Descriptions of trees travel only when they
are new.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fusion_ensemble_plugin.distributed import packing
from fusion_ensemble_plugin.distributed.failures import RankError, others_failed, others_missing, told
from fusion_ensemble_plugin.distributed.layout import Layout
from fusion_ensemble_plugin.distributed.roll import NoAnswer, Roll, within

PRESENT, FINISHED, FAILED = range(3)
FIXED = 3  # numbers in a notice besides one a rank
KNOWN = 256  # descriptions remembered

all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Notice(NamedTuple):
    """What a rank tells of itself at the start of an exchange.

    Attributes:
        state: PRESENT, FINISHED or FAILED.
        description: Of the tree that it sends; its error's text if it failed.
        sizes: The bytes that it sends to each rank of the team.
    """

    state: int
    description: bytes
    sizes: list[int]


class Link:
    """The connection between the ranks of one team; made by all ranks of the world at the same time.

    Args:
        layout: Who holds what.
        roll: Where the ranks leave messages.
        timeout: Seconds that a rank waits for the others.

    Attributes:
        layout: Who holds what.
        mesh: The two dimensions of the ranks, ``data`` and ``member``.
    """

    def __init__(self, layout: Layout, roll: Roll, timeout: float) -> None:
        self.layout = layout
        self.mesh = _mesh(layout, timeout)
        self._group = self.mesh.get_group("member")
        self._roll = roll
        self._timeout = timeout
        self._known: dict[int, bytes] = {}
        self._bound_to = (dist.group.WORLD, os.getpid())
        self._count = 0
        self._broken = ""

    def gather(self, tree: Any, finished: bool = False) -> dict[int, Any]:
        """Give a tree to every rank of the team.

        Args:
            tree: This rank's inputs.
            finished: This rank has none left; it goes on to work for the others.

        Returns:
            Place in the team to that rank's tree, on the CPU, without ranks that have finished.

        Raises:
            RankError: If another rank failed, or does not answer.
            TypeError: If this rank's tree can't be sent.
        """
        self._check()
        self._count += 1
        with self._telling():
            description, tensors = (b"", []) if finished else packing.describe(tree, "input")
        size = packing.size_of(tensors)
        notices = self._announce(FINISHED if finished else PRESENT, description, [size] * self.layout.size)
        largest = max(notice.sizes[0] for notice in notices)
        received = torch.empty(self.layout.size, largest, dtype=torch.uint8)
        if largest:
            sent = torch.zeros(largest, dtype=torch.uint8)
            packing.fill(sent, tensors)
            self._collective(all_gather, received.view(-1), sent)
        return {
            place: packing.restore(notice.description, received[place])
            for place, notice in enumerate(notices)
            if notice.state == PRESENT
        }

    def trade(self, trees: Mapping[int, Any]) -> dict[int, Any]:
        """Give each rank of the team a tree of its own.

        Args:
            trees: Place in the team to tree; nothing is sent to ranks that are left out.

        Returns:
            Place in the team to the tree that came from there.

        Raises:
            RankError: If another rank failed, or does not answer.
        """
        with self._telling():
            described = {place: packing.describe(trees[place], "output") for place in sorted(trees)}
            packed = {place: description for place, (description, _) in described.items()}
            outer, _ = packing.describe(packed, "output")
        sizes = [packing.size_of(described[place][1]) if place in described else 0 for place in range(self.layout.size)]
        notices = self._announce(PRESENT, outer, sizes)
        received = self._swap(sizes, [notice.sizes[self.layout.place] for notice in notices], described)
        found = {}
        for place, notice in enumerate(notices):
            descriptions = packing.restore(notice.description, received[place])
            if self.layout.place in descriptions:
                found[place] = packing.restore(descriptions[self.layout.place], received[place])
        return found

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks, in the place of an exchange, that this one failed."""
        self._announce(FAILED, f"{told(error)}".encode() + os.urandom(8), [0] * self.layout.size, mine=True)

    def close(self) -> None:
        """Give up the connection."""
        self._broken = "it was closed"
        if dist.is_initialized():
            for dimension in ("data", "member"):
                dist.destroy_process_group(self.mesh.get_group(dimension))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def _swap(self, sizes: list[int], expected: list[int], described: Mapping[int, Any]) -> list[Tensor]:
        """Send each rank its buffer and receive one from each."""
        sent = torch.zeros(sum(sizes), dtype=torch.uint8)
        for place, part in enumerate(torch.split(sent, sizes)):
            if place in described:
                packing.fill(part, described[place][1])
        received = torch.empty(sum(expected), dtype=torch.uint8)
        self._collective(dist.all_to_all_single, received, sent, expected, sizes)
        return list(torch.split(received, expected))

    def _announce(self, state: int, description: bytes, sizes: list[int], mine: bool = False) -> list[Notice]:
        """Exchange notices.

        Args:
            state: How this rank is.
            description: Of what it sends.
            sizes: Of what it sends to each.
            mine: This rank failed itself, and raises its own error.

        Raises:
            RankError: If another rank failed.
        """
        digest = int.from_bytes(blake2b(description, digest_size=7).digest(), "big")
        sent = torch.tensor([state, len(description), digest, *sizes])
        received = torch.empty(self.layout.size * len(sent), dtype=sent.dtype)
        self._collective(all_gather, received, sent)
        rows: list[list[int]] = received.view(self.layout.size, -1).tolist()
        if any(row[2] not in self._known for row in rows):
            self._learn(description, rows)
        notices = [Notice(row[0], self._known[row[2]], row[FIXED:]) for row in rows]
        errors = {
            self.layout.team[place]: notice.description[:-8].decode()
            for place, notice in enumerate(notices)
            if notice.state == FAILED
        }
        if errors and not mine:
            raise others_failed(self.layout.describe, errors, self._doing)
        return notices

    def _learn(self, description: bytes, rows: list[list[int]]) -> None:
        """Exchange descriptions; every rank of the team then knows the same ones."""
        if len(self._known) > KNOWN:
            self._known.clear()
        largest = packing.aligned(max(row[1] for row in rows))
        sent = torch.zeros(largest, dtype=torch.uint8)
        sent[: len(description)] = torch.frombuffer(bytearray(description or b"0"), dtype=torch.uint8)[
            : len(description)
        ]
        received = torch.empty(self.layout.size * largest, dtype=torch.uint8)
        if largest:
            self._collective(all_gather, received, sent)
        for row, text in zip(rows, received.view(self.layout.size, -1)):
            self._known[row[2]] = bytes(text[: row[1]].tolist())

    def _collective(self, function: Callable[..., Any], *args: Any) -> None:
        began = time.monotonic()
        try:
            function(*args, group=self._group)
        except RuntimeError as error:
            self._broken = str(error)
            raise self._blamed(error, began + self._timeout - time.monotonic()) from error

    def _blamed(self, error: RuntimeError, seconds: float) -> RankError:
        """Find out which rank is to blame for a collective that failed."""
        others = [rank for rank in self.layout.team if rank != self.layout.rank]
        seconds = max(seconds, 2.0)
        cause = str(error).splitlines()[0]
        try:
            found = within(seconds + 5, lambda: self._roll.call("failure", cause, others, seconds))
        except NoAnswer as silence:
            lost = [0] if self.layout.rank != 0 else []
            return others_missing(
                self.layout.describe, lost, self._doing, self._timeout, f"{cause}; the store: {silence}"
            )
        missing = [rank for rank in others if rank not in found]
        return others_missing(self.layout.describe, missing, self._doing, self._timeout, cause)

    @property
    def _doing(self) -> str:
        return f"forward {self._count}"

    def _check(self) -> None:
        """Raise if this link can't be used.

        Raises:
            ValueError: If this is not the process, or not the process group, that it was made in.
            RankError: If it broke before.
        """
        if not dist.is_initialized() or self._bound_to != (dist.group.WORLD, os.getpid()):
            here = f"rank {dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else "a single process"
            raise ValueError(
                f"this ensemble was built on rank {self.layout.rank} of {self.layout.world} and holds only that rank's "
                f"members; it can't be used in another process or process group (here: {here}). Build it again here."
            )
        if self._broken:
            raise RankError(f"the ranks are no longer connected: {self._broken}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        """A copy of an ensemble uses the same connection."""
        return self

    def __reduce__(self) -> Any:
        raise ValueError(
            f"an ensemble spread over ranks can't be pickled or moved: it holds only the members of rank "
            f"{self.layout.rank} of {self.layout.world}, and its connections. Build it again where it is needed."
        )


def _mesh(layout: Layout, timeout: float) -> DeviceMesh:
    """Make the process groups of all teams; every rank of the world must take part."""
    ranks = torch.arange(layout.world).view(-1, layout.size)
    own: list[Any] = []
    for lines in (ranks.T, ranks):
        for line in lines.tolist():
            group = dist.new_group(line, timeout=timedelta(seconds=timeout), backend="gloo")
            if layout.rank in line:
                own.append(group)
    return DeviceMesh.from_group(own, "cpu", mesh=ranks, mesh_dim_names=("data", "member"))
