"""The searches for weights and temperature, against scores whose best is known, and all that they promise."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ensemble_plugin.selection.search import Trials, as_weights, greedy, learned, one_of, temperature

Weights = tuple[float, ...]


def accuracy_of(seed: int, members: int) -> Callable[[Weights], float]:
    """Return the accuracy, by weights, of an ensemble of members that are each right about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (40,), generator=generator)
    logits = 1.5 * torch.randn(members, 40, 4, generator=generator, dtype=torch.float64)
    logits[:, torch.arange(40), labels] += 1.0
    probabilities = logits.softmax(-1)

    def score(weights: Weights) -> float:
        pooled = torch.einsum("m,msc->sc", torch.tensor(weights, dtype=torch.float64), probabilities)
        return (pooled.argmax(-1) == labels).double().mean().item()

    return score


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    members=st.integers(1, 6),
    size=st.integers(1, 9),
    start=st.integers(0, 9),
    bags=st.integers(1, 4),
    share=st.floats(0.01, 1),
)
def test_greedy_weights_are_multiples_that_sum_to_1_and_never_worse_than_the_best_member(
    seed: int, members: int, size: int, start: int, bags: int, share: float
) -> None:
    score = accuracy_of(seed, members)
    found = greedy(score, members, size, start, bags, share, seed)
    total = sum(found.counts)
    assert total <= size * bags
    assert found.weights == tuple(count / total for count in found.counts)
    assert math.fsum(found.weights) == pytest.approx(1, abs=1e-15)
    assert score(found.weights) >= max(score(one_of(members, member)) for member in range(members))
    assert greedy(score, members, size, start, bags, share, seed) == found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), members=st.integers(1, 4))
def test_learned_weights_are_never_worse_than_equal_ones_and_the_best_member(seed: int, members: int) -> None:
    score = accuracy_of(seed, members)
    found = learned(score, members, 40)
    simple = [(1 / members,) * members, *(one_of(members, member) for member in range(members))]
    assert score(found) >= max(map(score, simple))
    assert min(found) >= 0
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert learned(score, members, 40) == found


def test_greedy_takes_step_by_step_what_a_search_written_out_takes() -> None:
    score, members = accuracy_of(3, 5), 5
    counts: Counter[int] = Counter()
    way = []
    for _ in range(6):
        ranked = sorted(range(members), key=lambda member: -score(one_of(members, member)))
        best = max(ranked, key=lambda member: score(as_weights([(counts + Counter([member]))[i] for i in range(5)])))
        counts[best] += 1
        way.append(tuple(counts[i] for i in range(members)))
    expected = max(way, key=lambda taken: score(as_weights(taken)))
    assert greedy(score, members, size=6, start=0).counts == expected


def test_a_sorted_start_takes_the_best_members_once_each() -> None:
    def score(weights: Weights) -> float:
        taken = sum(1 for weight in weights if weight)
        return taken + [0.2, 0.9, 0.5, 0.1][weights.index(1.0)] if taken == 1 else float(taken)

    assert greedy(score, 4, size=1, start=1).counts == (0, 1, 0, 0)
    assert greedy(score, 4, size=2, start=2).counts == (0, 1, 1, 0)
    assert greedy(score, 4, size=3, start=3).counts == (1, 1, 1, 0)
    assert greedy(score, 4, size=6, start=9).counts == (1, 1, 1, 1)


def test_the_best_prefix_is_kept_and_of_equal_ones_the_smallest() -> None:
    assert greedy(lambda weights: float(weights[2]), 3, size=5).counts == (0, 0, 1)
    assert greedy(lambda weights: -abs(weights[0] - 0.5), 3, size=8).counts == (1, 1, 0)


def test_bags_draw_some_members_each_and_their_counts_are_added_up() -> None:
    found = greedy(accuracy_of(5, 6), 6, size=5, bags=7, bag_share=0.5, seed=1)
    assert len(found.bags) == 7
    assert all(sum(1 for count in bag if count) <= 3 for bag in found.bags)
    assert found.counts == tuple(map(sum, zip(*found.bags)))
    others = {greedy(accuracy_of(5, 6), 6, size=5, bags=7, bag_share=0.5, seed=seed).bags for seed in range(5)}
    assert len(others) > 1


def test_bags_that_are_worse_than_the_best_member_give_that_member() -> None:
    def only_alone(weights: Weights) -> float:
        return weights[1] if 1.0 in weights else -1.0

    found = greedy(only_alone, 4, size=3, bags=5, bag_share=0.25)
    assert len({bag.index(1) for bag in found.bags}) > 1
    assert found.weights == (0, 1, 0, 0)


@pytest.mark.parametrize("target", [(0.7, 0.2, 0.1), (0.0, 1.0, 0.0), (0.0, 0.35, 0.65)])
def test_learned_weights_find_the_best_ones(target: Weights) -> None:
    def score(weights: Weights) -> float:
        return -sum((one - other) ** 2 for one, other in zip(weights, target))

    assert learned(score, 3, 150) == pytest.approx(target, abs=0.02)


def test_no_more_weights_are_tried_than_asked_for() -> None:
    trials = Trials(accuracy_of(0, 5))
    learned(trials, 5, 20)
    assert len(trials.scores) <= 20 + 6


@pytest.mark.parametrize("best", [0.1, 0.8, 1.7, 12.0])
def test_the_temperature_that_scores_best_is_found(best: float) -> None:
    assert temperature(lambda t: -((math.log(t) - math.log(best)) ** 2)) == pytest.approx(best, rel=0.01)


def test_a_temperature_is_never_worse_than_none() -> None:
    assert temperature(lambda t: 1.0 if t == 1.0 else 0.0) == 1.0


@pytest.mark.parametrize("search", [lambda s: greedy(s, 4, 6, bags=3), lambda s: learned(s, 3, 30), temperature])
def test_nothing_is_tried_twice(search: Callable[[Callable[..., float]], object]) -> None:
    tried: list[object] = []

    def score(value: object) -> float:
        tried.append(value)
        return -sum(value[1:]) if isinstance(value, tuple) else -abs(value - 2)  # type: ignore[operator]

    search(score)
    assert len(tried) == len(set(tried)) > 3


def test_counts_of_the_same_shares_are_the_same_weights() -> None:
    for counts in itertools.product(range(4), repeat=3):
        if any(counts):
            assert as_weights(counts) == as_weights([7 * count for count in counts])
