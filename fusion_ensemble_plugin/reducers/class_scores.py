"""What all reducers of class scores have in common: which outputs they combine, and along which dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

ScoreKeys = None | str | int | Sequence[Hashable]
"""Names (or positions) of the output fields that hold class scores; None for ``logits``, or the tensor itself."""


class ClassScoreReducer(ABC):
    """Combines class scores: logits, or log-probabilities, which are logits too.

    All other floating outputs get the mean. A subclass says how one member's scores become a state, how two states are
    merged and what the result is.

    Args:
        class_dim: The dimension of the classes.
        temperature: A number above 0 by which each member's logits are divided first.
        score_keys: See `ScoreKeys`.

    Raises:
        ValueError: If an option is wrong; the message lists all that are.
    """

    def __init__(self, class_dim: int = -1, temperature: float = 1.0, score_keys: ScoreKeys = None) -> None:
        problems = []
        if isinstance(class_dim, bool) or not isinstance(class_dim, int):
            problems.append(f"class_dim={class_dim!r}: a whole number is needed")
        if not (_is_number(temperature) and 0 < temperature < math.inf):
            problems.append(f"temperature={temperature!r}: a number above 0 is needed")
        keys = _as_keys(score_keys)
        if keys == ():
            problems.append(f"score_keys={score_keys!r}: the name of an output field, or a list of names, is needed")
        if problems:
            raise ValueError("; ".join(problems))
        self.class_dim = class_dim
        self.temperature = float(temperature)
        self.score_keys = keys

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Return log softmax(scores / temperature), always a new tensor of the same shape."""
        scaled = scores if self.temperature == 1 else scores / self.temperature
        return scaled.log_softmax(self.class_dim)

    @abstractmethod
    def lift(self, output: Tensor, weight: float) -> Any:
        """Turn one member's class scores into a partial result."""

    @abstractmethod
    def merge(self, left: Any, right: Any) -> Any:
        """Join two partial results; may write into ``left``."""

    @abstractmethod
    def lower(self, state: Any, total_weight: float) -> Tensor:
        """Turn the partial result of all members into class scores."""


def _as_keys(score_keys: object) -> tuple[Hashable, ...] | None:
    """Return the fields one by one; none at all if what was given is neither a name nor a list of names."""
    if score_keys is None:
        return None
    if isinstance(score_keys, (str, int)):
        return () if isinstance(score_keys, bool) else (score_keys,)
    return tuple(score_keys) if isinstance(score_keys, Sequence) else ()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
