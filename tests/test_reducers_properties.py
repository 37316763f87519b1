"""What holds for every reducer: any order, any grouping and any split over devices give the same; and two theorems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.plugins import make_reducer, registry
from fusion_ensemble_plugin.reducer import Reducer, reduce_tensors, weight_rule
from fusion_ensemble_plugin.tree import flatten

NAMES = sorted(name for name, (_, source) in registry().reducers.items() if source == "fusion-ensemble-plugin")
LANES = ["cpu:0", "cpu:1", "cpu:2"]
steady = settings(deadline=None, derandomize=True)  # the same examples each time, however busy the machine


@st.composite
def members(draw: st.DrawFn, at_least: int = 1) -> tuple[Tensor, list[float]]:
    """Draw outputs, (members, batch, classes), in float64, and weights that any reducer takes."""
    count = draw(st.integers(at_least, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    outputs = torch.randn(count, 3, 4, dtype=torch.float64, generator=generator) * draw(st.sampled_from([0.1, 1, 30]))
    return outputs, draw(st.lists(st.floats(0.1, 10), min_size=count, max_size=count))


def reducer_and_weights(name: str, weights: list[float]) -> tuple[Reducer, list[float]]:
    """Return a reducer, and weights that it takes."""
    reducer = make_reducer(name)
    return reducer, [1.0] * len(weights) if weight_rule(reducer) == "equal" else weights


def assert_same(left: Any, right: Any) -> None:
    """Compare trees of tensors up to rounding."""
    for one, other in zip(flatten(left)[0], flatten(right)[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def folded(reducer: Reducer, outputs: Tensor, weights: list[float], order: list[int]) -> Any:
    """Fold outputs in some order, each under its own index."""
    fold = Fold(reducer)
    for index in order:
        fold.add(index, str(index), outputs[index], weights[index])
    return fold.lower()


@pytest.mark.parametrize("name", NAMES)
@steady
@given(drawn=members(at_least=3), cut=st.integers(1, 5))
def test_merge_is_associative(name: str, drawn: tuple[Tensor, list[float]], cut: int) -> None:
    outputs, weights = drawn
    reducer, weights = reducer_and_weights(name, weights)
    cut = min(cut, len(weights) - 1)

    def lifted(indices: range) -> Any:
        states = [reducer.lift(outputs[index], weights[index]) for index in indices]
        state = states[0]
        for other in states[1:]:
            state = reducer.merge(state, other)
        return state

    grouped = reducer.merge(lifted(range(cut)), lifted(range(cut, len(weights))))
    one_by_one = lifted(range(len(weights)))
    assert_same(reducer.lower(grouped, sum(weights)), reducer.lower(one_by_one, sum(weights)))


@pytest.mark.parametrize("name", NAMES)
@steady
@given(drawn=members(at_least=2))
def test_merge_is_commutative(name: str, drawn: tuple[Tensor, list[float]]) -> None:
    outputs, weights = drawn
    reducer, weights = reducer_and_weights(name, weights)
    forth = reducer.merge(reducer.lift(outputs[0], weights[0]), reducer.lift(outputs[1], weights[1]))
    back = reducer.merge(reducer.lift(outputs[1], weights[1]), reducer.lift(outputs[0], weights[0]))
    assert_same(reducer.lower(forth, sum(weights[:2])), reducer.lower(back, sum(weights[:2])))


@pytest.mark.parametrize("name", NAMES)
@steady
@given(drawn=members(), data=st.data())
def test_the_order_of_the_members_does_not_matter(
    name: str, drawn: tuple[Tensor, list[float]], data: st.DataObject
) -> None:
    outputs, weights = drawn
    reducer, weights = reducer_and_weights(name, weights)
    order = data.draw(st.permutations(range(len(weights))))
    shuffled = folded(reducer, outputs[list(order)], [weights[i] for i in order], list(range(len(weights))))
    assert_same(shuffled, folded(reducer, outputs, weights, list(range(len(weights)))))
    assert_same(folded(reducer, outputs, weights, list(order)), shuffled)


@pytest.mark.parametrize("name", NAMES)
@steady
@given(drawn=members(), copies=st.integers(1, 6))
def test_copies_of_one_member_give_that_member(name: str, drawn: tuple[Tensor, list[float]], copies: int) -> None:
    output = drawn[0][0]
    alone = reduce_tensors(make_reducer(name), [output])
    together = reduce_tensors(make_reducer(name), [output] * copies)
    if name == "sum":
        alone = alone * copies
    assert_same(together, alone)


@pytest.mark.parametrize("name", NAMES)
@settings(steady, max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_split_over_devices_gives_the_same(name: str, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(2, 6))
    places = data.draw(st.lists(st.sampled_from(LANES), min_size=count, max_size=count))
    torch.manual_seed(seed)
    models = [nn.Linear(3, 4).double() for _ in range(count)]
    x = torch.randn(2, 3, dtype=torch.float64)
    spread = ParallelEnsemble(models, places, reducer=name)
    try:
        assert_same(spread(x), ParallelEnsemble(models, reducer=name)(x))
    finally:
        spread.close()


@steady
@given(drawn=members(at_least=2), targets=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_jensen_the_mean_probability_is_no_worse_than_the_mean_member(
    drawn: tuple[Tensor, list[float]], targets: list[int]
) -> None:
    outputs, weights = drawn
    target, shares = torch.tensor(targets), torch.tensor(weights, dtype=torch.float64) / sum(weights)
    members_nll = torch.stack([F.nll_loss(output.log_softmax(-1), target, reduction="none") for output in outputs])
    pooled = reduce_tensors(make_reducer("probability_mean"), list(outputs), weights)
    nll = F.nll_loss(pooled, target, reduction="none")
    assert (nll <= shares @ members_nll + 1e-9).all()


@steady
@given(drawn=members(at_least=2), targets=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_jensen_the_mean_logits_gain_the_log_of_the_shared_mass_over_the_mean_member(
    drawn: tuple[Tensor, list[float]], targets: list[int]
) -> None:
    outputs, weights = drawn
    target, shares = torch.tensor(targets), torch.tensor(weights, dtype=torch.float64) / sum(weights)
    log_p = outputs.log_softmax(-1)
    members_nll = torch.stack([F.nll_loss(one, target, reduction="none") for one in log_p])
    nll = F.cross_entropy(reduce_tensors(make_reducer("mean"), list(outputs), weights), target, reduction="none")
    gap = -torch.einsum("m,mbc->bc", shares, log_p).logsumexp(-1)  # -log sum_c prod_i p_i(c)^w_i
    assert (gap >= -1e-9).all()
    torch.testing.assert_close(shares @ members_nll - nll, gap, rtol=1e-9, atol=1e-9)
    pool = reduce_tensors(make_reducer("log_probability_mean"), list(outputs), weights)
    torch.testing.assert_close(F.nll_loss(pool, target, reduction="none"), nll, rtol=1e-9, atol=1e-9)


@steady
@given(drawn=members(at_least=2), seed=st.integers(0, 2**32 - 1))
def test_the_mean_errs_by_the_mean_error_less_the_mean_spread(drawn: tuple[Tensor, list[float]], seed: int) -> None:
    """Krogh and Vedelsby 1995: Neural network ensembles, cross validation, and active learning."""
    outputs, weights = drawn
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    truth = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mean, spread = reduce_tensors(make_reducer("variance"), list(outputs), weights)
    member_error = torch.einsum("m,mbc->bc", shares, (outputs - truth).square())
    torch.testing.assert_close((mean - truth).square(), member_error - spread, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, reduce_tensors(make_reducer("mean"), list(outputs), weights))


@steady
@given(drawn=members(at_least=2))
def test_the_vote_goes_to_the_class_with_most_votes_and_of_those_to_the_most_probable(
    drawn: tuple[Tensor, list[float]],
) -> None:
    outputs, _ = drawn
    votes = F.one_hot(outputs.argmax(-1), 4).sum(0)
    tied = votes == votes.amax(-1, keepdim=True)
    probability = outputs.softmax(-1).mean(0)
    best = probability.masked_fill(~tied, -1).topk(2, dim=-1).values
    assume((best[..., 0] - best[..., 1] > 1e-9).all())
    expected = probability.masked_fill(~tied, -1).argmax(-1)
    result = reduce_tensors(make_reducer("majority_vote"), list(outputs))
    assert torch.equal(result.argmax(-1), expected)
    for half in (torch.bfloat16, torch.float16):  # the lead lasts in half precision
        assert torch.equal(result.to(half).argmax(-1), expected)
    assert result.isfinite().all()


def test_votes_of_weights_that_add_up_to_the_same_are_a_tie() -> None:
    scores = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 9.0])]
    assert 0.1 + 0.2 != 0.3
    result = reduce_tensors(make_reducer("majority_vote"), scores, [0.1, 0.2, 0.3])
    assert result.argmax().item() == 1  # the second class is the more probable one
