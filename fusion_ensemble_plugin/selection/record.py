"""What was chosen, by what, and what it brought: for the screen and for a file beside the host's report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FILE = "selection_report.json"


@dataclass(frozen=True)
class Selection:
    """A choice of weights, or of a temperature.

    Attributes:
        method: The class that chose.
        metric: What it chose by.
        tasks: The tasks that counted; None for all.
        before: The metric without a choice: with equal weights, or without a temperature.
        after: The metric with it, on the same data, and therefore flattered.
        evaluations: How many combinations were evaluated.
        weights: One number a member.
        alone: The metric of each member alone; nothing if members were not tried alone.
        options: What else was chosen: counts, or the temperature.
        same_data: Tasks by whose data it was chosen and which are reported with the same data.
    """

    method: str
    metric: str
    tasks: Sequence[str] | None
    before: float
    after: float
    evaluations: int
    weights: Mapping[str, float]
    alone: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    same_data: Sequence[str] = ()

    @property
    def warning(self) -> str:
        """What to say of data that are used twice; nothing if none are."""
        if not self.same_data:
            return ""
        return (
            f"chosen on the data that are reported ({', '.join(self.same_data)}): the reported "
            f"{self.metric} is too good for new data"
        )

    def lines(self) -> list[str]:
        """Return what a reader of the screen wants to know."""
        width = max(map(len, self.weights))
        rows = [
            f"  {name:<{width}}  weight {weight:.4f}"
            + (f"  alone {self.alone[name]:.4f}" if name in self.alone else "")
            for name, weight in self.weights.items()
        ]
        others = [f"  {name}: {value}" for name, value in self.options.items()]
        head = f"{self.method}: {self.metric} {self.before:.4f} -> {self.after:.4f}, {self.evaluations} evaluations"
        return [head, *rows, *others, *([f"  {self.warning}"] if self.warning else [])]

    def write(self, folder: str | Path | None) -> None:
        """Write it to a folder, if there is one; a folder that cannot be written to costs a warning only."""
        if folder is None:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            content = {**asdict(self), "warning": self.warning}
            (Path(folder) / FILE).write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            log.warning("%s could not be written: %s", FILE, error)
