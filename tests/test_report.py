"""The report: its numbers against the task pool's and numpy's, members that run once, interruptions, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from classification_pool import CLASSES, Member, PointsTaskPool, members, points
from matplotlib.image import imread
from torch import Tensor, nn

from fusion_ensemble_plugin import EnsembleReportAlgorithm

TASKS = {"near": points(0), "far": points(1, 60)}
FILES = {
    "ensemble_report.json",
    "ensemble_report.md",
    "accuracy_by_task.png",
    "accuracy_by_members.png",
    "agreement.png",
    "reliability_near.png",
    "reliability_far.png",
}


class Pure(Member):
    """A member whose attributes stay as they are; a list outside counts its runs."""

    ran: list[str] = []  # noqa: RUF012

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.requires_grad_(False)
        self.seed = seed

    def forward(self, points: Tensor) -> Tensor:
        type(self).ran.append(str(self.seed))
        return -self.sharpness * torch.cdist(points, self.centres)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what interrupted runs leave in the test's own folder."""
    monkeypatch.setenv("FUSION_ENSEMBLE_CACHE", str(tmp_path / "cache"))
    Pure.ran.clear()


def pool(count: int = 4) -> dict[str, nn.Module]:
    return {name: Pure(seed) for seed, name in enumerate(members(count))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Return a report and its folder."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_ENSEMBLE_CACHE", str(folder / "cache"))
        method = EnsembleReportAlgorithm(variants=["median", "probability_mean"], weights=[1, 2, 1, 1])
        Pure.ran.clear()
        report = method.evaluate(pool(), PointsTaskPool(TASKS), folder / "out")
    assert len(Pure.ran) == 4 * (3 + 2) + (3 + 2)  # each member, and the weight average, once a batch
    return report, folder / "out"


def logits(model: nn.Module, task: str) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(TASKS[task].tensors[0]).double().numpy()
    return found


def softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_each_models_numbers_are_an_independent_loops(made: tuple[dict[str, Any], Path]) -> None:
    models, weights = pool(), np.array([1, 2, 1, 1]) / 5
    for task, data in TASKS.items():
        labels = data.tensors[1].numpy()
        alone = np.stack([logits(model, task) for model in models.values()])
        expected = {f"member/{name}": each for name, each in zip(models, alone)}
        expected["ensemble"] = np.einsum("m,msc->sc", weights, alone)
        expected["variant/probability_mean"] = np.log(np.einsum("m,msc->sc", weights, softmax(alone)))
        rest = weights[1:] / weights[1:].sum()
        expected["without/mnist"] = np.einsum("m,msc->sc", rest, alone[1:])
        for name, scores in expected.items():
            row = made[0]["models"][name]["tasks"][task]
            p = softmax(scores)
            assert row["accuracy"] == pytest.approx((p.argmax(-1) == labels).mean(), abs=1e-12)
            assert row["nll"] == pytest.approx(-np.log(p[np.arange(len(p)), labels]).mean(), rel=1e-5)
            assert row["brier"] == pytest.approx(((p - np.eye(CLASSES)[labels]) ** 2).sum(-1).mean(), rel=1e-5)
            assert row["loss"] == pytest.approx(row["nll"], rel=1e-6)
            low, high = row["accuracy_interval"]
            assert low <= row["accuracy"] <= high


def test_what_is_said_of_all_members_is_an_independent_computation(made: tuple[dict[str, Any], Path]) -> None:
    models, weights = pool(), np.array([1, 2, 1, 1]) / 5
    for task, data in TASKS.items():
        found, labels = made[0]["members_together"][task], data.tensors[1].numpy()
        p = softmax(np.stack([logits(model, task) for model in models.values()]))
        mean = np.einsum("m,msc->sc", weights, p)
        entropy = -(mean * np.log(mean)).sum(-1).mean()
        within = -(weights @ (p * np.log(p)).sum(-1)).mean()
        assert found["predictive_entropy"] == pytest.approx(entropy, rel=1e-5)
        assert found["mutual_information"] == pytest.approx(entropy - within, rel=1e-4)
        assert 0 <= found["mutual_information"] <= -(weights * np.log(weights)).sum()
        predicted = p.argmax(-1)
        assert found["oracle_accuracy"] == pytest.approx((predicted == labels).any(0).mean())
        assert np.allclose(found["disagreement"], (predicted[:, None] != predicted[None]).mean(-1))
        parts = found["ambiguity"]
        assert parts["ensemble"] == pytest.approx(parts["members"] - parts["ambiguity"], abs=1e-12)
        assert found["jensen_gap"] >= 0


def test_gains_are_paired_by_sample(made: tuple[dict[str, Any], Path]) -> None:
    report = made[0]
    mean = {name: model["average"]["accuracy"] for name, model in report["models"].items()}
    best = max((name for name in mean if name.startswith("member/")), key=lambda name: mean[name])
    gain = report["gain_over_best_member"]
    assert f"member/{gain['member']}" == best
    assert gain["value"] == pytest.approx(mean["ensemble"] - mean[best])
    assert gain["low"] <= gain["value"] <= gain["high"]
    for name, loss in report["loss_without_member"].items():
        assert loss["value"] == pytest.approx(mean["ensemble"] - mean[f"without/{name}"])
    average = report["gain_over_weight_average"]["value"]
    assert average == pytest.approx(mean["ensemble"] - mean["weight_average"])


def test_files_are_written_and_pictures_are_drawn(made: tuple[dict[str, Any], Path]) -> None:
    report, folder = made
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "ensemble_report.json").read_text())["models"].keys() == report["models"].keys()
    page = (folder / "ensemble_report.md").read_text()
    assert "| variant median |" in page
    assert "The ensemble's accuracy over its best member" in page
    for picture in folder.glob("*.png"):
        assert imread(picture)[..., :3].std() > 0.05


def test_reports_with_and_without_a_cache_or_again_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    seen = []
    for number, cache in enumerate(["memory", None, "disk", "disk"]):
        options = {"cache": cache, "variants": ["median"], "seed": 3, "cache_bytes": 1000, "plots": number < 2}
        method = EnsembleReportAlgorithm(**options)
        seen.append(method.evaluate(pool(), PointsTaskPool(TASKS), tmp_path / str(number)))
    assert seen[0] == seen[1] == seen[2] == seen[3]
    files = [{path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()} for number in range(2)]
    assert files[0] == files[1]


class Interrupted(PointsTaskPool):
    """A task pool whose third evaluation is interrupted."""

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.evaluations == 3:
            raise KeyboardInterrupt
        return super().evaluate(model, *args, **kwargs)


def test_an_interrupted_report_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = EnsembleReportAlgorithm(plots=False).evaluate(pool(), PointsTaskPool(TASKS), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        EnsembleReportAlgorithm(plots=False).evaluate(pool(), Interrupted(TASKS), tmp_path / "out")
    taskpool = PointsTaskPool(TASKS)
    assert EnsembleReportAlgorithm(plots=False).evaluate(pool(), taskpool, tmp_path / "out") == whole
    assert taskpool.evaluations == len(whole["models"]) - 3
    again = PointsTaskPool(TASKS)
    EnsembleReportAlgorithm(plots=False).evaluate(pool(), again, tmp_path / "out")
    assert again.evaluations == len(whole["models"])  # nothing is left of a report that was written


def test_what_is_left_of_other_weights_or_damaged_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        EnsembleReportAlgorithm(plots=False).evaluate(pool(), Interrupted(TASKS), tmp_path / "out")
    others = pool()
    others["mnist"].centres.data += 1e-6  # type: ignore[operator]
    taskpool = PointsTaskPool(TASKS)
    report = EnsembleReportAlgorithm(plots=False).evaluate(others, taskpool, tmp_path / "others")
    assert taskpool.evaluations == len(report["models"])
    for file in (tmp_path / "cache").rglob("reports/*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])
    taskpool = PointsTaskPool(TASKS)
    EnsembleReportAlgorithm(plots=False).evaluate(pool(), taskpool, tmp_path / "out")
    assert taskpool.evaluations == len(report["models"])
    assert caplog.text.count("is damaged") == 3


def test_a_report_folder_that_cannot_be_written_costs_a_message_and_not_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").write_text("a file is in the way")
    report = EnsembleReportAlgorithm(plots=False).evaluate(pool(), PointsTaskPool(TASKS), tmp_path / "out")
    assert report["models"]["ensemble"]["average"]["accuracy"] > 0.5
    assert "could not be written" in caplog.text


def test_one_member_makes_a_trivial_report_that_says_so(tmp_path: Path) -> None:
    report = EnsembleReportAlgorithm(plots=False).evaluate(pool(1), PointsTaskPool(TASKS), tmp_path)
    assert list(report["models"]) == ["member/mnist", "ensemble"]
    assert "one member" in report["skipped"]["comparisons"]
    assert report["gain_over_best_member"] is None


class Losses(PointsTaskPool):
    """Reports a number, and gives no labels."""

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> Any:
        inputs, labels = zip(*samples)
        return torch.stack(inputs), torch.stack(labels).double()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"near": {"error": sum(model(x).abs().mean().item() for x, _ in self.test_dataloaders["near"])}}


def test_tasks_without_class_scores_are_reported_as_the_task_pool_does_and_it_is_said_why(tmp_path: Path) -> None:
    taskpool = Losses(TASKS)
    report = EnsembleReportAlgorithm(plots=False).evaluate(pool(), taskpool, tmp_path)
    row = report["models"]["ensemble"]["tasks"]["near"]
    assert list(row) == ["error"]
    assert "no class scores and labels could be observed for near" in report["skipped"]["metrics of probabilities"]
    assert not list(tmp_path.glob("*.png"))


def test_members_that_have_no_weight_average_are_reported_without_one(tmp_path: Path) -> None:
    unlike = pool(3)
    unlike["keys"] = nn.Linear(2, CLASSES)
    report = EnsembleReportAlgorithm(plots=False).evaluate(unlike, PointsTaskPool(TASKS), tmp_path)
    assert "weight_average" in report["skipped"]
    assert "weight_average" not in report["models"]
    assert report["gain_over_weight_average"] is None


def test_wrong_options_are_told_together_before_a_model_is_loaded() -> None:
    class Pool:
        model_names = ("a", "b")

        def load_model(self, name: str) -> nn.Module:
            raise AssertionError("loaded")

    method = EnsembleReportAlgorithm(
        metrics=["nll", "bleu"],
        variants={"x": {"reducer": "modus"}, "y": {"wieghts": [1]}},
        subsets=-1,
        batch_bytes="-2",
    )
    with pytest.raises(ValueError, match="bleu") as told:
        method.evaluate(Pool(), PointsTaskPool(TASKS), "nowhere")
    for part in ("'bleu'", "modus", "wieghts", "subsets=-1", "'-2'"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match="without FusionBench's program"):
        EnsembleReportAlgorithm(plots=False).run(pool())


def test_a_program_without_a_task_pool_or_that_saves_is_refused() -> None:
    method = EnsembleReportAlgorithm()
    method._program = SimpleNamespace(taskpool=None, merged_model_save_path="here")  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"needs a task pool.*leave merged_model_save_path null"):
        method.run(pool())
