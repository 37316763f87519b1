"""Which task an ensemble is at work for, as FusionBench's task pools set it."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_bench.models.wrappers.switch import SwitchModule
from torch import nn


class TaskChoice(SwitchModule):
    """Holds the index of the member that was trained for the task.

    Its names are as free as a pool's are: the modules that FusionBench's own class keeps could not be called "keys" or
    "a.b", and of two that differ in case it would keep one.

    Args:
        names: The members' names.

    Examples:
        >>> choice = TaskChoice(["mnist", "stanford-cars"])
        >>> choice.set_active_option("Stanford_Cars")
        >>> choice.index
        1
    """

    def __init__(self, names: Sequence[str]) -> None:
        nn.Module.__init__(self)
        self._names = tuple(names)
        self.index = 0

    def set_active_option(self, option_name: str) -> None:
        """Choose a task by its member's name: the same, or else one that FusionBench takes for the same.

        Raises:
            ValueError: If there is none, or more than one.
        """
        alike = [name for name in self._names if _plain(name) == _plain(option_name)]
        found = [option_name] if option_name in self._names else alike
        if len(found) != 1:
            raise ValueError(
                f"task {option_name!r}: needed is one member of that name, whose head is applied; "
                f"there are {', '.join(map(repr, alike or self._names))}"
            )
        self.index = self._names.index(found[0])

    __getattr__ = nn.Module.__getattr__  # FusionBench's looks into modules that are not here


def _plain(name: str) -> str:
    """Return a name as FusionBench compares names of tasks."""
    return name.strip().lower().replace("-", "_").replace("/", "_")
