"""Which rank holds which member. Pure data.

The world's ranks form teams of consecutive ranks; each team holds every member once. Within a team the work is
member-parallel, between teams it is data-parallel. A team of one rank holds all members, as without member parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The layout as one rank sees it.

    Attributes:
        rank: This rank, in the world.
        world: The number of ranks.
        size: The number of ranks in a team.
        names: The names of all members.

    Examples:
        >>> layout = Layout(rank=3, world=4, size=2, names=("a", "b", "c"))
        >>> layout.team, layout.place, list(layout.own), layout.holder(0)
        ((2, 3), 1, [1, 2], 2)
    """

    rank: int
    world: int
    size: int
    names: tuple[str, ...]

    @property
    def team(self) -> tuple[int, ...]:
        """The ranks of this rank's team, in the order of their members."""
        start = self.rank // self.size * self.size
        return tuple(range(start, start + self.size))

    @property
    def place(self) -> int:
        """This rank's position in its team."""
        return self.rank % self.size

    @property
    def own(self) -> range:
        """The indices of the members that this rank holds."""
        return self.held(self.rank)

    def held(self, rank: int) -> range:
        """Return the indices of the members that a rank holds: neighbours, as many as any other rank, or one fewer."""
        place, count = rank % self.size, len(self.names)
        return range(place * count // self.size, (place + 1) * count // self.size)

    def holder(self, index: int) -> int:
        """Return the rank of this team that holds a member."""
        return next(rank for rank in self.team if index in self.held(rank))

    def describe(self, rank: int) -> str:
        """Name a rank and its members, for an error message."""
        names = [self.names[index] for index in self.held(rank)]
        members = f"members {', '.join(map(repr, names))}" if len(names) > 1 else f"member {names[0]!r}"
        return f"rank {rank} ({members})"


def arrange(member_parallel: bool | int, world: int, rank: int, names: Sequence[str]) -> Layout | None:
    """Lay the members out over the ranks.

    Args:
        member_parallel: True for one team of all ranks, a number for teams of that many ranks, False for no teams.
        world: The number of ranks.
        rank: This rank.
        names: The names of all members.

    Returns:
        None if each rank holds all members.

    Raises:
        ValueError: If the teams don't divide the world, or a rank would hold no member.

    Examples:
        >>> [list(arrange(True, 3, rank, "abcde").own) for rank in range(3)]
        [[0], [1, 2], [3, 4]]
    """
    if not isinstance(member_parallel, int):
        raise ValueError(
            f"member_parallel={member_parallel!r}: needed is true, false, or the number of ranks in a team"
        )
    size = (world if member_parallel else 1) if isinstance(member_parallel, bool) else member_parallel
    divisors = [number for number in range(1, world + 1) if world % number == 0]
    if size not in divisors:
        raise ValueError(
            f"member_parallel={member_parallel}: teams of {size} don't divide the {world} ranks of this run; "
            f"possible are {_listed(divisors)}"
        )
    if size > len(names):
        possible = [number for number in divisors if number <= len(names)]
        raise ValueError(
            f"member_parallel={str(member_parallel).lower()}: {size} ranks can't share {len(names)} members, some "
            f"would hold none; possible are teams of {_listed(possible)}, each of which holds all members"
        )
    return None if size == 1 else Layout(rank, world, size, tuple(names))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
