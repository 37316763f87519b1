"""Bootstrap intervals: as wide as theory has them, paired by sample, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion_ensemble_plugin.report.bootstrap import gain_over_best, mean_interval


def flips(share: float, count: int, seed: int = 0) -> torch.Tensor:
    """Return right (true) and wrong, ``(count,)``."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share


def test_an_accuracys_interval_is_as_wide_as_the_normal_approximation_has_it() -> None:
    right = flips(0.8, 2000)
    found = mean_interval(right)
    p = right.double().mean().item()
    half = 1.96 * np.sqrt(p * (1 - p) / 2000)
    assert found.value == pytest.approx(p)
    assert found.low == pytest.approx(p - half, abs=0.1 * half)
    assert found.high == pytest.approx(p + half, abs=0.1 * half)


def test_an_interval_of_several_tasks_is_that_of_their_mean_and_draws_each_on_its_own() -> None:
    tasks = [flips(0.5, 400), flips(0.9, 100, seed=1)]
    found = mean_interval(*tasks)
    means = [task.double().mean().item() for task in tasks]
    error = np.sqrt(sum(m * (1 - m) / len(task) for m, task in zip(means, tasks))) / 2
    assert found.value == pytest.approx(np.mean(means))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_the_seed_decides_and_confidence_widens() -> None:
    losses = torch.randn(500, generator=torch.Generator().manual_seed(0)).square()
    assert mean_interval(losses, seed=3) == mean_interval(losses, seed=3)
    assert mean_interval(losses, seed=3) != mean_interval(losses, seed=4)
    wide, narrow = mean_interval(losses, confidence=0.99), mean_interval(losses, confidence=0.5)
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_drawing_in_small_batches_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flips(0.7, 500)
    whole = mean_interval(right)
    monkeypatch.setattr("fusion_ensemble_plugin.report.bootstrap._AT_ONCE", 5000)
    assert mean_interval(right) == whole


def test_values_that_are_all_equal_have_an_interval_without_width() -> None:
    assert mean_interval(torch.ones(50)) == (1.0, 1.0, 1.0)
    assert mean_interval([0.25]) == (0.25, 0.25, 0.25)


def test_a_task_of_one_sample_goes_along_with_larger_ones() -> None:
    found = mean_interval([1.0], flips(0.5, 100))
    assert 0.5 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("tasks", [[], [[]], [[1.0], []]])
def test_an_interval_of_nothing_is_refused(tasks: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(*tasks)


def test_the_gain_is_taken_over_the_best_member_sample_by_sample() -> None:
    hard = flips(0.3, 1000)  # wrong for everybody
    best = ~hard & flips(0.99, 1000, seed=1)
    members = torch.stack([flips(0.5, 1000, seed=2), best])
    found = gain_over_best([~hard], [members])
    assert found.best == 1
    assert found.gain.value == pytest.approx((~hard).double().mean().item() - best.double().mean().item())
    assert not found.gain.holds_zero
    unpaired = mean_interval(~hard)
    assert found.gain.high - found.gain.low < 0.5 * (unpaired.high - unpaired.low)


def test_the_best_member_is_the_best_on_the_mean_over_tasks() -> None:
    first = torch.stack([torch.ones(10), torch.zeros(10)])
    second = torch.stack([torch.zeros(1000), torch.cat([torch.ones(900), torch.zeros(100)])])
    found = gain_over_best([torch.ones(10), torch.ones(1000)], [first, second])
    assert found.best == 0
    assert found.gain.value == pytest.approx(0.5)


def test_a_gain_that_is_noise_holds_zero() -> None:
    member = torch.arange(300) < 240
    ensemble = member.clone()
    ensemble[:10], ensemble[-12:] = False, True  # ten lost, twelve gained
    found = gain_over_best([ensemble], [member[None]]).gain
    assert found.value == pytest.approx(2 / 300)
    assert found.holds_zero
