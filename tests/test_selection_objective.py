"""Reading the metric that members are chosen by from a task pool's report."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from fusion_ensemble_plugin.selection.objective import Objective

REPORT: dict[str, Any] = {
    "model_info": {"all_params": 7, "accuracy": 0.0},
    "mnist": {"accuracy": 0.9, "loss": 0.2, "note": "text", "flag": True},
    "digits": {"accuracy": 0.5, "loss": 0.6},
    "perplexity_of_text": {"perplexity": 9.0},
    "average": {"accuracy": 0.1},
    "seconds": 12.0,
}


def test_a_metric_is_the_mean_of_the_tasks_that_have_it_and_the_others_are_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Objective("accuracy").value(REPORT) == pytest.approx(0.7)
        Objective("accuracy").value(REPORT)
    assert [record.getMessage() for record in caplog.records] == [
        "left out, as their reports have no 'accuracy': perplexity_of_text"
    ]


def test_only_the_chosen_tasks_count() -> None:
    assert Objective("accuracy", ["digits"]).by_task(REPORT) == {"digits": 0.5}


@pytest.mark.parametrize(
    ("metric", "direction", "score"),
    [("loss", "auto", -0.4), ("loss", "max", 0.4), ("accuracy", "auto", 0.7), ("accuracy", "min", -0.7)],
)
def test_the_score_is_larger_where_the_metric_is_better(metric: str, direction: str, score: float) -> None:
    assert Objective(metric, ["mnist", "digits"], direction).score(REPORT) == pytest.approx(score)


@pytest.mark.parametrize("metric", ["loss", "word_perplexity,none", "abs_err", "rel-error", "RMSE", "ece"])
def test_metrics_of_which_less_is_better_are_known_by_their_names(metric: str) -> None:
    assert not Objective(metric).more_is_better


@pytest.mark.parametrize("metric", ["accuracy", "mIoU", "terror_recall", "f1", "bleu_1"])
def test_of_other_metrics_more_is_better(metric: str) -> None:
    assert Objective(metric).more_is_better


def test_a_metric_that_is_not_a_number_is_worse_than_any_number() -> None:
    assert Objective("loss").score({"mnist": {"loss": math.nan}}) == -math.inf


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (
            Objective("f1"),
            "no metric 'f1' of 'mnist', 'digits', 'perplexity_of_text'; the report has 'accuracy', 'loss'",
        ),
        (Objective("loss", ["mnist", "perplexity_of_text"]), "no metric 'loss' of 'perplexity_of_text'"),
        (Objective("loss", ["mnist", "svhn"]), "no task 'svhn' in the report; it has 'mnist', 'digits'"),
    ],
)
def test_what_the_report_does_not_have_is_told_with_what_it_has(objective: Objective, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        objective.value(REPORT)


def test_a_report_of_one_task_is_read_as_it_is() -> None:
    assert Objective("val/mIoU").by_task({"val/mIoU": 0.5, "model_info": {"all_params": 7}}) == {"report": 0.5}


@pytest.mark.parametrize("report", [None, [], 0.5])
def test_what_is_no_report_is_refused(report: Any) -> None:
    with pytest.raises(ValueError, match=r"returned .*, not a report"):
        Objective("loss").value(report)


def test_all_that_is_wrong_with_an_objective_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"metric=''.*direction='up'.*tasks=\[\]"):
        Objective("", [], "up")
