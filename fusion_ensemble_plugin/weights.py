"""Members' weights, as a user writes them and as the reducers take them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion_ensemble_plugin.naming import member_index

Weights = None | Sequence[float] | Mapping[Any, float]
"""One number a member, in order, or by name or index; None stands for all 1."""

LARGEST = 1e20
"""What the largest weight may be, or its inverse: outputs times weights must be numbers in float32."""


def resolve_weights(weights: Weights, names: Sequence[str], rule: str = "positive") -> tuple[float, ...]:
    """Return one weight a member.

    Args:
        weights: What the user wrote.
        names: The members' names, in order.
        rule: Which weights mean something to the reducer; see `fusion_ensemble_plugin.reducer.WeightRule`.

    Raises:
        ValueError: If a member has no weight or a weight no member, if a weight is not a finite number, if all are 0,
            or if one is not as the rule has it. The message lists every problem.

    Examples:
        >>> resolve_weights({"svhn": 3, "mnist": 1}, ["mnist", "svhn"])
        (1.0, 3.0)
    """
    if weights is None:
        return (1.0,) * len(names)
    problems: list[str] = []
    given = {name: _number(name, value, problems) for name, value in _by_name(weights, names, problems).items()}
    problems += _against(rule, given)
    if not problems and not any(given.values()):
        problems.append("they are all 0")
    if problems:
        raise ValueError(
            f"weights={weights}: {'; '.join(problems)}. Needed: one {_NEEDED[rule]} for each of "
            f"{', '.join(map(repr, names))}."
        )
    return tuple(given[name] for name in names)


_NEEDED = {
    "positive": "number >= 0",
    "signed": "number",
    "equal": "0 or 1, to leave members out or in,",
}


def _against(rule: str, given: Mapping[str, float]) -> list[str]:
    """Say which weights are not as the rule has them."""
    if rule == "equal":
        different = {weight for weight in given.values() if weight != 0}
        if len(different) > 1 or any(weight < 0 for weight in different):
            return ["the reducer takes no weights: it can only leave members out (weight 0)"]
    if rule == "positive":
        negative = [f"{name!r} has weight {weight:g}" for name, weight in given.items() if weight < 0]
        if negative:
            return [*negative, "negative weights are allowed only in a sum (weighted_ensemble with normalize: false)"]
        largest = max(given.values(), default=0.0)
        if math.isfinite(largest) and largest and not 1 / LARGEST <= largest <= LARGEST:
            return [
                f"the largest is {largest:g}, and outputs are combined in float32: multiply all weights by one number, "
                f"so that the largest is between {1 / LARGEST:g} and {LARGEST:g}"
            ]
    return []


def _number(name: str, value: Any, problems: list[str]) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        problems.append(f"{name!r} has weight {value!r}, which is not a finite number")
    return number


def _by_name(weights: Any, names: Sequence[str], problems: list[str]) -> dict[str, Any]:
    if isinstance(weights, Mapping):
        return _from_mapping(weights, names, problems)
    if isinstance(weights, str) or not isinstance(weights, Iterable):
        problems.append("a list, or a mapping from member to number, is needed")
        return {}
    listed = list(weights)
    if len(listed) != len(names):
        problems.append(f"{len(listed)} weights for {len(names)} members")
    return dict(zip(names, listed))


def _from_mapping(weights: Mapping[Any, Any], names: Sequence[str], problems: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in weights.items():
        index = member_index(key, names)
        if index is None:
            problems.append(f"no member {key!r}")
        elif names[index] in found:
            problems.append(f"member {names[index]!r} twice")
        else:
            found[names[index]] = value
    problems += [f"no weight for {name!r}" for name in names if name not in found]
    return found
