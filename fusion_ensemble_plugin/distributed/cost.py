"""What spreading members over ranks costs and brings: arithmetic alone, for machines that are not rented yet.

The model. N members, W ranks in teams of G, each of which holds all members: a rank holds h = ceil(N / G) of them. In
one forward every rank brings a batch of I bytes and takes home an output of O bytes.

- Memory of a rank: h members, the team's inputs as they come and once more joined, 2 G I, and of the outputs, at most
  three at a time, those it sends and those it gets: 5 G O.
- On the wire: each rank sends its batch to G - 1 others, and each of them the folded output for theirs: (G - 1)(I + O),
  besides notices of 8 (3 + G) bytes, two a forward. Reducers that need all outputs at once (a median) send h O.
- Time: a rank runs its h members on G batches, where one process with all members would run N on one. The ideal
  speed-up of W ranks over one process is therefore W N / (h G), which is W when G divides N. With a connection of B
  bytes a second and L seconds of latency, a forward takes h G t + (G - 1)(I + O) / B + 4 L.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

NOTICE = 3
"""Numbers of 8 bytes in a notice besides one a rank."""


@dataclass(frozen=True)
class Plan:
    """What to expect of a layout.

    Attributes:
        members: How many members.
        ranks: How many ranks.
        team: How many ranks share the members.
        devices: How many devices a rank has, over which its members are spread.
        member_bytes: Of one member's weights.
        input_bytes: Of one rank's batch.
        output_bytes: Of what one member makes of it.
        whole: Whether the reducer needs all outputs at once, as a median does.

    Raises:
        ValueError: If a number is not above 0, if teams of that size don't divide the ranks, or if they are larger than
            the number of members.

    Examples:
        >>> Plan(members=8, ranks=4, team=4, member_bytes=100).held
        2
    """

    members: int
    ranks: int
    team: int
    member_bytes: int
    input_bytes: int = 0
    output_bytes: int = 0
    devices: int = 1
    whole: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not above 0"
            for name in ("members", "ranks", "team", "devices")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}={getattr(self, name)} is below 0"
            for name in ("member_bytes", "input_bytes", "output_bytes")
            if getattr(self, name) < 0
        ]
        if not problems and self.ranks % self.team:
            problems.append(f"teams of {self.team} don't divide {self.ranks} ranks")
        if not problems and self.team > self.members:
            problems.append(f"{self.team} ranks can't share {self.members} members; some would hold none")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def held(self) -> int:
        """The members of the rank that holds most."""
        return ceil(self.members / self.team)

    @property
    def weights(self) -> int:
        """Bytes of the members that one rank holds."""
        return self.held * self.member_bytes

    @property
    def largest_device(self) -> int:
        """Bytes of the members on the device that has most."""
        return ceil(self.held / self.devices) * self.member_bytes

    @property
    def batches(self) -> int:
        """Bytes of inputs and outputs that one rank holds at a time."""
        return 2 * self.team * self.input_bytes + 5 * self.team * self.output_bytes

    @property
    def sent(self) -> int:
        """Bytes that one rank sends in one forward."""
        output = self.output_bytes * (self.held if self.whole else 1)
        notices = 2 * 8 * (NOTICE + self.team)
        return (self.team - 1) * (self.input_bytes + output + notices)

    @property
    def wire(self) -> int:
        """Bytes that all ranks send in one forward."""
        return self.ranks * self.sent

    @property
    def ideal_speedup(self) -> float:
        """How many times as many batches as one process with all members, if sending took no time."""
        return self.ranks * self.members / (self.held * self.team)

    def seconds(self, member: float, bandwidth: float, latency: float) -> float:
        """Return the time of one forward.

        Args:
            member: Seconds that one member takes for one batch.
            bandwidth: Bytes a second between ranks.
            latency: Seconds.
        """
        computing = ceil(self.held / self.devices) * self.team * member
        return computing + (self.sent / bandwidth + 4 * latency if self.team > 1 else 0.0)

    def speedup(self, member: float, bandwidth: float, latency: float) -> float:
        """Return how many times as many batches as one process with all members on one device."""
        return self.ranks * self.members * member / self.seconds(member, bandwidth, latency)
