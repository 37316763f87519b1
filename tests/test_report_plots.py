"""The report's pictures: not blank, the right labels, the numbers that they were given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fusion_ensemble_plugin.report.bootstrap import Interval, mean_interval
from fusion_ensemble_plugin.report.metrics import correct, reliability
from fusion_ensemble_plugin.report.metrics_diversity import disagreement, pooled
from fusion_ensemble_plugin.report.plots import (
    accuracy_by_members,
    accuracy_by_task,
    agreement_matrix,
    reliability_diagram,
    save,
)

NAMES = ["mnist", "a.b", "faces"]


def some_members() -> tuple[Tensor, Tensor]:
    """Return three members' probabilities on 200 samples of four classes, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=generator)
    logits = 2 * torch.randn(3, 200, 4, generator=generator)
    logits[:, torch.arange(200), labels] += 2
    return logits.softmax(-1), labels


def task_figure() -> Figure:
    members, labels = some_members()
    rows = {name: {"mnist": mean_interval(correct(p, labels))} for name, p in zip(NAMES, members)}
    rows["ensemble"] = {"mnist": mean_interval(correct(pooled(members), labels)), "faces": Interval(0.5, 0.4, 0.7)}
    return accuracy_by_task(rows)


def reliability_figure() -> Figure:
    members, labels = some_members()
    return reliability_diagram(
        {"member": reliability(members[0], labels), "pool": reliability(pooled(members), labels)}
    )


def agreement_figure() -> Figure:
    return agreement_matrix(disagreement(some_members()[0]), NAMES)


def members_figure() -> Figure:
    return accuracy_by_members({1: [0.5, 0.6, 0.7], 3: [0.8], 2: [0.6, 0.7, 0.75]})


FIGURES = [task_figure, reliability_figure, agreement_figure, members_figure]


@pytest.mark.parametrize("make", FIGURES)
def test_a_picture_is_not_blank_and_the_same_bytes_each_time(make: Callable[[], Figure], tmp_path: Path) -> None:
    first = save(make(), tmp_path / "new" / "first.png")
    second = save(make(), tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()
    pixels = np.asarray(Image.open(first).convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    inked = (pixels != 255).any(-1)
    assert inked.mean() > 0.01
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_tasks_picture_shows_every_models_accuracy_and_interval() -> None:
    axes = task_figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mnist", "faces"]
    assert [text.get_text() for text in task_figure().legends[0].get_texts()] == [*NAMES, "ensemble"]
    assert axes.get_ylabel() == "accuracy"
    assert "95%" in axes.get_title()
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    line, _, (ranges,) = bars[-1].lines
    assert line is not None
    assert np.asarray(line.get_ydata())[1] == 0.5
    ends = ranges.get_segments()[1][:, 1]
    assert ends.tolist() == pytest.approx([0.4, 0.7])


def test_the_reliability_picture_names_the_calibration_errors_and_leaves_empty_bins_out() -> None:
    members, labels = some_members()
    bins = reliability(members[0], labels)
    axes, below = reliability_figure().axes
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ["perfectly calibrated", f"member (ECE {bins.error:.3f})"]
    drawn = np.asarray(axes.lines[1].get_xydata())
    filled = bins.samples > 0
    assert not filled.all()
    np.testing.assert_allclose(drawn, torch.stack([bins.confidence, bins.accuracy], dim=1)[filled])
    assert np.asarray(below.lines[0].get_ydata()).sum() == pytest.approx(1)
    assert "confidence" in below.get_xlabel()


def test_the_agreement_picture_writes_each_pairs_share_beside_its_names() -> None:
    axes = agreement_figure().axes[0]
    apart = disagreement(some_members()[0])
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert [label.get_text() for label in axes.get_xticklabels()] == NAMES
    assert [text.get_text() for text in axes.texts] == [f"{1 - value:.0%}" for value in apart.flatten().tolist()]


def test_the_members_picture_draws_mean_and_range_in_the_order_of_sizes() -> None:
    axes = members_figure().axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xydata()), [[1, 0.6], [2, 2.05 / 3], [3, 0.8]])
    assert axes.get_xlabel() == "members"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["range over the choice of members", "mean"]


def test_drawing_opens_no_window_and_leaves_pyplot_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    members_figure()
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_folder_that_is_a_file_ends_in_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(OSError, match="report"):
        save(members_figure(), tmp_path / "report" / "plot.png")
