"""What a report compares: members, the ensemble, its variants, ensembles without a member, and the weight average."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fusion_ensemble_plugin.ensemble import ParallelEnsemble

log = logging.getLogger(__name__)

ENSEMBLE = "ensemble"
WEIGHT_AVERAGE = "weight_average"


@dataclass(frozen=True)
class Entry:
    """One model of a report.

    Attributes:
        kind: "member", "ensemble", "variant", "without" (a member), "subset" or "weight_average".
        members: Indices of the members that it is made of.
        make: Makes the model; members are shared, not copied.
    """

    kind: str
    members: tuple[int, ...]
    make: Callable[[], nn.Module]


def entries(
    ensemble: ParallelEnsemble,
    variants: Mapping[str, Callable[[], nn.Module]],
    weight_average: Callable[[], nn.Module] | None,
    subsets: int,
    seed: int,
) -> dict[str, Entry]:
    """Return what is evaluated, by name, members first: what they compute serves all that follow.

    Args:
        ensemble: The ensemble of all members.
        variants: More ensembles of all members.
        weight_average: Makes the model with the mean of the members' weights; None leaves it out.
        subsets: How many ensembles of each size between 2 and all but two members; the members are drawn at random.
        seed: For that.
    """
    count = len(ensemble.names)
    every = tuple(range(count))
    found = {f"member/{name}": Entry("member", (i,), _alone(ensemble, i)) for i, name in enumerate(ensemble.names)}
    found[ENSEMBLE] = Entry("ensemble", every, lambda: ensemble)
    found.update({f"variant/{name}": Entry("variant", every, make) for name, make in variants.items()})
    if count > 1:
        for index, name in enumerate(ensemble.names):
            rest = tuple(i for i in every if i != index)
            if count > 2 and any(ensemble.member_weights[i] for i in rest):
                found[f"without/{name}"] = Entry("without", rest, _some(ensemble, rest))
    for members in drawn_subsets(count, subsets, seed):
        if any(ensemble.member_weights[i] for i in members):
            name = "+".join(ensemble.names[i] for i in members)
            found[f"subset/{name}"] = Entry("subset", members, _some(ensemble, members))
    if weight_average is not None and count > 1:
        found[WEIGHT_AVERAGE] = Entry("weight_average", every, weight_average)
    return found


def drawn_subsets(count: int, each: int, seed: int) -> list[tuple[int, ...]]:
    """Return some subsets of each size between 2 and two less than all, drawn without repetition.

    Examples:
        >>> drawn_subsets(4, 3, seed=0)
        [(0, 1), (1, 2), (2, 3)]
        >>> len(drawn_subsets(4, 100, seed=0))
        6
    """
    chosen: list[tuple[int, ...]] = []
    generator = random.Random(seed)
    for size in range(2, count - 1):
        if count <= 12:
            every = list(itertools.combinations(range(count), size))
            chosen += sorted(generator.sample(every, min(each, len(every))))
        else:
            chosen += sorted({tuple(sorted(generator.sample(range(count), size))) for _ in range(each)})
    return chosen


def _alone(ensemble: ParallelEnsemble, index: int) -> Callable[[], nn.Module]:
    return lambda: ensemble.subset([index], weights=[1.0], reducer="mean")


def _some(ensemble: ParallelEnsemble, members: Sequence[int]) -> Callable[[], nn.Module]:
    return lambda: ensemble.subset(members)


def variant_problems(variants: Any, check: Callable[[Mapping[str, Any]], None]) -> list[str]:
    """Return what is wrong with the option ``variants``."""
    if not isinstance(variants, Mapping):
        return [f"variants={variants!r}: needed is a list of reducers' names, or a mapping of names to options"]
    problems = []
    for name, options in variants.items():
        unknown = sorted(set(options) - {"reducer", "weights", "logits"}) if isinstance(options, Mapping) else [options]
        if unknown:
            problems.append(f"variants.{name}: {unknown} is none of reducer, weights, logits")
            continue
        try:
            check(options)
        except (ValueError, TypeError) as error:
            problems.append(f"variants.{name}: {error}")
    return problems
