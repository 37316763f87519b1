"""Members' weights, as a user writes them and as the reducers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Weights = None | Sequence[float] | Mapping[str, float]
"""One number a member, in order or by name; None stands for all 1."""


def resolve_weights(weights: Weights, names: Sequence[str]) -> tuple[float, ...]:
    """Return one weight a member.

    Args:
        weights: What the user wrote.
        names: The members' names, in order.

    Raises:
        ValueError: If a member has no weight or a weight no member, if a weight is not a finite number of at least 0,
            or if all are 0. The message lists every problem.

    Examples:
        >>> resolve_weights({"svhn": 3, "mnist": 1}, ["mnist", "svhn"])
        (1.0, 3.0)
    """
    if weights is None:
        return (1.0,) * len(names)
    problems: list[str] = []
    given = _by_name(weights, names, problems)
    values = {name: float(value) for name, value in given.items()}
    problems += [
        f"{name!r} has weight {value}" for name, value in values.items() if not math.isfinite(value) or value < 0
    ]
    if not problems and sum(values.values()) == 0:
        problems.append("they sum to 0")
    if problems:
        needed = f"one number >= 0 for each of {', '.join(map(repr, names))}"
        raise ValueError(f"weights={weights}: {'; '.join(problems)}. Needed: {needed}.")
    return tuple(values[name] for name in names)


def _by_name(
    weights: Sequence[float] | Mapping[str, float], names: Sequence[str], problems: list[str]
) -> Mapping[str, float]:
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            problems.append(f"{len(weights)} weights for {len(names)} members")
        return dict(zip(names, weights))
    problems += [f"no member {name!r}" for name in weights if name not in names]
    problems += [f"no weight for {name!r}" for name in names if name not in weights]
    return weights
