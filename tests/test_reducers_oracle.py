"""Each reducer against a line of float64, over dtypes, shapes, strides and weights, through the output contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fusion_bench.models.wrappers.ensemble import MaxModelPredictor, WeightedEnsembleModule
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.plugins import make_reducer, registry
from fusion_ensemble_plugin.reducers.variance import MeanVariance
from fusion_ensemble_plugin.reducers.voting import LEAD, SMOOTHING

N = 5
WEIGHTS = (3.0, 1.0, 0.5, 2.0, 0.25)
SHARES = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

# (members, *shape) and one share a member to (*shape), classes last; all in float64
ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda y, w: torch.einsum("m,m...->...", w, y),
    "sum": lambda y, w: torch.einsum("m,m...->...", w, y) * sum(WEIGHTS),
    "probability_mean": lambda y, w: torch.einsum("m,m...->...", w, y.softmax(-1)).log(),
    "log_probability_mean": lambda y, w: torch.einsum("m,m...->...", w, y).log_softmax(-1),
    "calibrated_mean": lambda y, w: torch.einsum("m,m...->...", w, y.softmax(-1)).log(),  # without a temperature
    "majority_vote": lambda y, w: (
        (1 - SMOOTHING) * torch.einsum("m,m...->...", w, nn.functional.one_hot(y.argmax(-1), y.shape[-1]).double())
        + SMOOTHING * torch.einsum("m,m...->...", w, y.softmax(-1))
    ).log(),
    "max": lambda y, w: y.amax(0),
    "min": lambda y, w: y.amin(0),
    "median": lambda y, w: torch.from_numpy(np.median(y.numpy(), axis=0)),
    "trimmed_mean": lambda y, w: (y.sum(0) - y.amax(0) - y.amin(0)) / (N - 2),
}
TAKES_NO_WEIGHTS = {"max", "min", "median", "trimmed_mean"}
SHAPES = {
    "one image": (7,),
    "batch": (4, 7),
    "empty batch": (0, 7),
    "map": (2, 3, 5, 7),
}


def outputs_of(members: Tensor, reducer: object, weights: tuple[float, ...]) -> Tensor:
    """Fold outputs, (members, *shape), as an ensemble does."""
    fold = Fold(make_reducer(reducer))
    for index, output in enumerate(members):
        fold.add(index, str(index), output, weights[index])
    result: Tensor = fold.lower()
    return result


def strided(outputs: Tensor, layout: str) -> Tensor:
    """Lay the same values out in memory in another way."""
    if layout == "transposed":
        return outputs.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "every other":
        return torch.stack([outputs, outputs], dim=-1).flatten(-2)[..., ::2]
    return outputs


def test_every_registered_reducer_has_an_oracle() -> None:
    ours = {name for name, (_, source) in registry().reducers.items() if source == "fusion-ensemble-plugin"}
    assert ours == set(ORACLES) | {"variance"}


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ORACLES)
def test_a_reducer_equals_its_oracle_in_float64(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    outputs = strided(torch.randn(N, *shape, generator=torch.Generator().manual_seed(1)) * 3, layout).to(dtype)
    weights = (1.0,) * N if name in TAKES_NO_WEIGHTS else WEIGHTS
    expected = ORACLES[name](outputs.double(), SHARES)
    if name == "majority_vote":  # rows in which two classes come close are another test's
        best = expected.topk(2, dim=-1).values.exp()
        keep = (best[..., 0] > (1 + LEAD) * best[..., 1]).unsqueeze(-1)
    else:
        keep = torch.ones(1, dtype=torch.bool)
    result = outputs_of(outputs, name, weights)
    assert (result.dtype, result.shape) == (dtype, shape)
    error = ((result.double() - expected) * keep).abs() / expected.abs().clamp_min(1)
    assert error.max().item() <= TOLERANCE[dtype] if error.numel() else True


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", ["mean", "sum"])
def test_linear_reducers_take_complex_outputs(name: str, dtype: torch.dtype) -> None:
    outputs = torch.randn(N, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected = ORACLES[name](outputs.to(torch.complex128), SHARES.to(torch.complex128))
    result = outputs_of(outputs, name, WEIGHTS)
    assert result.dtype == dtype
    torch.testing.assert_close(result.to(torch.complex128), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TAKES_NO_WEIGHTS))
def test_reducers_that_sort_refuse_complex_outputs_and_name_those_that_take_them(name: str) -> None:
    with pytest.raises(TypeError, match="complex64 has no order; of the reducers, mean, sum and variance"):
        outputs_of(torch.zeros(N, 2, dtype=torch.complex64), name, (1.0,) * N)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.complex128], ids=str)
def test_variance_gives_the_mean_and_the_mean_squared_distance_from_it(dtype: torch.dtype) -> None:
    outputs = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype) * 2
    wide = outputs.to(torch.complex128 if dtype.is_complex else torch.float64)
    mean = torch.einsum("m,m...->...", SHARES.to(wide.dtype), wide)
    variance = torch.einsum("m,m...->...", SHARES, (wide - mean).abs().square())
    result = outputs_of(outputs, "variance", WEIGHTS)
    assert isinstance(result, MeanVariance)
    assert result.mean.dtype == dtype
    torch.testing.assert_close(result.mean.to(wide.dtype), mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(result.variance.double(), variance, rtol=1e-5, atol=1e-5)


def test_variance_of_half_precision_outputs_stays_in_the_range_of_float32() -> None:
    result = outputs_of(torch.tensor([[300.0], [-300.0]], dtype=torch.float16), "variance", (1.0, 1.0))
    assert result.variance.dtype == torch.float32
    assert result.variance.item() == 90_000  # over float16's 65,504


def test_variance_does_not_cancel_far_from_zero() -> None:
    outputs = torch.tensor([[1e6], [1e6 + 1], [1e6 + 2]])
    mean_of_squares = outputs.square().mean() - outputs.mean().square()
    assert outputs_of(outputs, "variance", (1.0, 1.0, 1.0)).variance.item() == pytest.approx(2 / 3, rel=1e-6)
    assert mean_of_squares.item() != pytest.approx(2 / 3, rel=0.1)  # what the short formula makes of it


@pytest.mark.parametrize("name", ["mean", "probability_mean", "log_probability_mean", "majority_vote", "variance"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_weights_do_not_change_the_dtype(name: str, dtype: torch.dtype) -> None:
    result = outputs_of(torch.ones(2, 3, dtype=dtype), name, (0.3, 0.7))
    assert (result.mean if name == "variance" else result).dtype == dtype


def test_a_sum_of_half_precision_outputs_does_not_overflow() -> None:
    members = torch.full((2, 1), 6e4, dtype=torch.float16)
    assert (members[0] + members[1]).isinf().all()  # what a float16 sum would give
    assert outputs_of(members, "mean", (1.0, 1.0)).item() == torch.tensor(6e4, dtype=torch.float16).item()


def test_probabilities_of_far_apart_logits_keep_their_order() -> None:
    members = torch.tensor([[0.0, -500.0, -900.0], [0.0, -700.0, -800.0]])
    expected = ORACLES["probability_mean"](members.double(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert expected[1:].isneginf().any()  # even float64 loses exp(-800)
    result = outputs_of(members, "probability_mean", (1.0, 1.0))
    assert result.tolist() == pytest.approx([0.0, -500 - math.log(2), -800 - math.log(2)])


def test_one_member_vetoes_a_class_in_the_logarithmic_pool_and_not_in_the_linear_one() -> None:
    members = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    assert outputs_of(members, "log_probability_mean", (1.0, 1.0)).tolist() == [0.0, -math.inf]
    assert outputs_of(members, "mean", (1.0, 1.0)).tolist() == [0.0, -math.inf]
    assert outputs_of(members, "probability_mean", (1.0, 1.0)).exp().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("name", ["mean", "log_probability_mean", "probability_mean", "majority_vote"])
def test_a_member_of_weight_0_cannot_turn_an_output_into_nan(name: str) -> None:
    class Constant(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.register_buffer("logits", torch.tensor(logits))

        def forward(self) -> Tensor:
            return self.get_buffer("logits")

    members = [Constant([1.0, 0.0]), Constant([-math.inf, 0.0])]
    alone = ParallelEnsemble(members[:1], reducer=name)()
    assert torch.equal(ParallelEnsemble(members, reducer=name, weights=[1, 0])(), alone)
    assert (torch.tensor(-math.inf) * 0).isnan()  # what a weighted sum of all members would meet


@pytest.mark.parametrize("name", ["max", "min", "median", "trimmed_mean", "mean", "variance"])
@pytest.mark.parametrize("position", range(4))
def test_a_nan_of_any_member_is_not_hidden(name: str, position: int) -> None:
    members = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    members[position] = math.nan
    result = outputs_of(members, name, (1.0,) * 4)
    assert (result.mean if name == "variance" else result).isnan().all()


@pytest.mark.parametrize(("members", "expected"), [(1, 5.0), (2, 3.5), (3, 5.0), (4, 6.0), (6, 6.0)])
def test_the_median_of_an_even_number_lies_halfway(members: int, expected: float) -> None:
    values = torch.tensor([[5.0], [2.0], [9.0], [7.0], [1.0], [100.0]])[:members]
    assert outputs_of(values, "median", (1.0,) * members).item() == expected == values.quantile(0.5).item()


@pytest.mark.parametrize(
    ("fraction", "members", "trimmed"),
    [(0.0, 4, 0), (0.24, 4, 0), (0.25, 4, 1), (0.25, 8, 2), (0.49, 2, 0), (0.49, 3, 1), (0.29, 100, 29), (0.1, 30, 3)],
)
def test_the_trimmed_mean_leaves_out_a_fraction_at_either_end(fraction: float, members: int, trimmed: int) -> None:
    values = torch.randn(members, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    expected = values.sort(0).values[trimmed : members - trimmed].mean().item()
    reducer = {"name": "trimmed_mean", "fraction": fraction}
    assert outputs_of(values, reducer, (1.0,) * members).item() == pytest.approx(expected, rel=1e-12)


def test_a_temperature_divides_the_logits_first() -> None:
    members = torch.randn(N, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in ("probability_mean", "log_probability_mean"):
        result = outputs_of(members, {"name": name, "temperature": 2.5}, WEIGHTS)
        torch.testing.assert_close(result, ORACLES[name](members / 2.5, SHARES), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_pooled_temperature_raises_the_mean_probabilities_to_a_power(temperature: float) -> None:
    members = torch.randn(N, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spec = {"name": "calibrated_mean", "pooled_temperature": temperature, "temperature": 2.5}
    power = torch.einsum("m,mbc->bc", SHARES, (members / 2.5).softmax(-1)) ** (1 / temperature)
    torch.testing.assert_close(outputs_of(members, spec, WEIGHTS).exp(), power / power.sum(-1, keepdim=True))


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, True, "hot"])
def test_a_pooled_temperature_is_a_number_above_0(temperature: object) -> None:
    with pytest.raises(ValueError, match="pooled_temperature="):
        make_reducer({"name": "calibrated_mean", "pooled_temperature": temperature})


@pytest.mark.parametrize("name", ["probability_mean", "log_probability_mean", "majority_vote"])
@pytest.mark.parametrize("class_dim", [1, -3])
def test_classes_may_lie_along_another_dimension(name: str, class_dim: int) -> None:
    members = torch.randn(N, 2, 7, 3, 4, generator=torch.Generator().manual_seed(1))
    result = outputs_of(members, {"name": name, "class_dim": class_dim}, WEIGHTS)
    last = outputs_of(members.movedim(2, -1), name, WEIGHTS)
    torch.testing.assert_close(result.movedim(1, -1), last)


@pytest.mark.parametrize("name", ["probability_mean", "log_probability_mean", "majority_vote"])
def test_log_probabilities_are_of_probabilities_that_sum_to_1(name: str) -> None:
    members = torch.randn(N, 64, 10, generator=torch.Generator().manual_seed(1)) * 20
    total = outputs_of(members, name, WEIGHTS).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(64), rtol=1e-5, atol=1e-5)


def test_weights_agree_with_the_hosts_weighted_ensemble() -> None:
    models = [nn.Linear(6, 3) for _ in range(N)]
    x = torch.randn(8, 6)
    for normalize, reducer in ((True, "mean"), (False, "sum")):
        host = WeightedEnsembleModule(models, torch.tensor(WEIGHTS), normalize=normalize)
        ours = ParallelEnsemble(models, weights=WEIGHTS, reducer=reducer)
        torch.testing.assert_close(ours(x), host(x), rtol=1e-6, atol=1e-6)


def test_max_agrees_with_the_hosts_max_model_predictor() -> None:
    models = [nn.Linear(6, 3) for _ in range(N)]
    x = torch.randn(8, 6)
    assert torch.equal(ParallelEnsemble(models, reducer="max")(x), MaxModelPredictor(models)(x))


@pytest.mark.parametrize("name", [*ORACLES, "variance"])
def test_gradients_reach_every_member_and_are_right(name: str) -> None:
    outputs = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def reduced(members: Tensor) -> Tensor:
        result = outputs_of(members, name, (1.0,) * 4)
        return result.variance if name == "variance" else result

    assert torch.autograd.gradcheck(reduced, (outputs,))


def test_a_class_that_no_member_thinks_possible_has_a_gradient_of_0() -> None:
    outputs = torch.tensor([[0.0, 1.0, -math.inf], [1.0, 0.0, -math.inf]], requires_grad=True)
    outputs_of(outputs, "probability_mean", (1.0, 1.0))[0].backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 2].tolist() == [0.0, 0.0]
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("name", [*ORACLES, "variance"])
def test_members_that_return_one_and_the_same_tensor_find_it_unchanged(name: str) -> None:
    cached = torch.randn(3, 5)
    before = cached.clone()
    outputs_of([cached, cached, cached], name, (1.0,) * 3)  # type: ignore[arg-type]
    assert torch.equal(cached, before)


@pytest.mark.parametrize("name", [*ORACLES, "variance"])
def test_members_of_two_dtypes_give_the_wider_one_in_any_order(name: str) -> None:
    narrow, wide = torch.randn(3, 5), torch.randn(3, 5, dtype=torch.float64)
    for first, second in ((narrow, wide), (wide, narrow)):
        result = outputs_of([first, second], name, (1.0, 1.0))  # type: ignore[arg-type]
        both = outputs_of(torch.stack([first.double(), second.double()]), name, (1.0, 1.0))
        for one, other in zip(result, both) if name == "variance" else [(result, both)]:
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
