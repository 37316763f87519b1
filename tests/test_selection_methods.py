"""Methods that choose weights, or a temperature, by a task pool of the host's kind."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from classification_pool import Member, PointsTaskPool, members, points
from fusion_bench.utils.instantiate_utils import instantiate
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from worlds import run_world

from fusion_ensemble_plugin import (
    CalibratedEnsembleAlgorithm,
    GreedyEnsembleAlgorithm,
    LearnedWeightsAlgorithm,
    ParallelEnsemble,
)
from fusion_ensemble_plugin.memory import parse_bytes
from fusion_ensemble_plugin.selection.batches import Budget, KeptBatches, batches_kept
from fusion_ensemble_plugin.selection.data import every_nth
from fusion_ensemble_plugin.selection.method import SelectingEnsembleAlgorithm
from fusion_ensemble_plugin.selection.record import Selection
from fusion_ensemble_plugin.selection.taskpool import make_taskpool, same_data

METHODS = [GreedyEnsembleAlgorithm, LearnedWeightsAlgorithm, CalibratedEnsembleAlgorithm]
CONFIG = {
    "_target_": "classification_pool.PointsTaskPool",
    "_recursive_": False,
    "test_datasets": {"left": {"_target_": "classification_pool.points", "seed": 0}},
}


def pool(**options: Any) -> PointsTaskPool:
    return PointsTaskPool({"left": points(0), "right": points(1)}, **options)


def program(taskpool: Any, folder: Path | None = None) -> Any:
    """Return what a method sees of the host's program: the task pool that reports, its fabric and its log folder."""
    import lightning

    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    return SimpleNamespace(_taskpool=taskpool, taskpool=None, fabric=fabric, log_dir=folder and str(folder))


def value(metric: str, ensemble: nn.Module, tasks: Mapping[str, Any] | None = None) -> float:
    """Return a metric's mean over tasks."""
    report = PointsTaskPool(tasks or {"left": points(0), "right": points(1)}).evaluate(ensemble)
    return sum(report[task][metric] for task in report if task != "model_info") / (len(report) - 1)


@pytest.mark.parametrize("method", [GreedyEnsembleAlgorithm, LearnedWeightsAlgorithm])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_chosen_weights_are_on_their_data_no_worse_than_the_best_member(
    method: type[SelectingEnsembleAlgorithm], metric: str
) -> None:
    models = members(4)
    made = method(selection_taskpool=pool(), metric=metric)
    ensemble = made.run(models)
    sign = 1 if metric == "accuracy" else -1
    found = sign * value(metric, ensemble)
    alone = [sign * value(metric, model) for model in models.values()]
    assert found >= max(alone)
    assert made.selection.after == pytest.approx(sign * found)
    assert list(made.selection.alone.values()) == pytest.approx([sign * each for each in alone])
    assert made.selection.before == pytest.approx(value(metric, ParallelEnsemble(models.values())))
    assert sum(made.selection.weights.values()) == pytest.approx(1)
    if method is LearnedWeightsAlgorithm:
        assert found >= sign * made.selection.before


def test_greedy_weights_are_the_counts_of_a_search_over_plain_ensembles() -> None:
    models = members(3)
    method = GreedyEnsembleAlgorithm(selection_taskpool=pool(), size=4, metric="loss")
    weights = method.run(models).member_weights
    counts = [method.selection.options["counts"][name] for name in models]
    assert weights == tuple(count / sum(counts) for count in counts)
    grown, best = [0, 0, 0], []
    for _ in range(4):
        losses = []
        for index in range(3):
            tried = [count + (index == other) for other, count in enumerate(grown)]
            losses.append(value("loss", ParallelEnsemble(models.values(), weights=tried)))
        grown[losses.index(min(losses))] += 1
        best.append((min(losses), list(grown)))
    assert counts == min(best)[1]


def test_a_temperature_lowers_the_loss_and_leaves_the_accuracy() -> None:
    models = members(4, sharpness=20.0)  # much too sure
    method = CalibratedEnsembleAlgorithm(selection_taskpool=pool())
    ensemble = method.run(models)
    plain = ParallelEnsemble(models.values(), reducer="probability_mean")
    found = method.selection.options["pooled_temperature"]
    assert found > 1.5
    assert value("loss", ensemble) < 0.8 * value("loss", plain)
    assert value("accuracy", ensemble) == value("accuracy", plain)
    inputs, labels = (torch.cat([points(seed).tensors[part] for seed in (0, 1)]) for part in (0, 1))
    pooled = plain(inputs).double()
    losses = {t: F.cross_entropy(pooled / t, labels).item() for t in torch.linspace(0.5, 20, 2000).tolist()}
    assert found == pytest.approx(min(losses, key=losses.__getitem__), rel=0.02)


def test_only_the_chosen_tasks_count() -> None:
    method = GreedyEnsembleAlgorithm(selection_taskpool=pool(), tasks=["right"])
    ensemble = method.run(members(3))
    assert method.selection.after == pytest.approx(value("accuracy", ensemble, {"right": points(1)}))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_options_choose_the_same(method: type[SelectingEnsembleAlgorithm]) -> None:
    options: dict[str, Any] = {"bags": 3, "seed": 5} if method is GreedyEnsembleAlgorithm else {}
    first, second = (method(selection_taskpool=pool(), **options) for _ in range(2))
    assert first.run(members(4)).member_weights == second.run(members(4)).member_weights
    assert first.selection == second.selection


def test_a_pool_with_one_member_gives_that_member() -> None:
    for method in METHODS:
        assert method(selection_taskpool=pool()).run(members(1)).member_weights == (1.0,)


def test_the_data_are_read_once_and_then_read_by_the_task_pools_own_loaders_again() -> None:
    taskpool = pool()
    GreedyEnsembleAlgorithm(selection_taskpool=taskpool).run(members(3))
    assert taskpool.evaluations > 5
    assert taskpool.read == 2 * 3
    taskpool.evaluate(members(1)["mnist"])
    assert taskpool.read == 4 * 3


@pytest.mark.parametrize(("keep", "read"), [(0, 6), ("1KiB", 6), ("2KiB", 3)])
def test_data_that_do_not_fit_are_read_each_time(keep: int | str, read: int) -> None:
    taskpool = pool()  # a task has 120 points of 8 + 8 bytes
    with batches_kept(taskpool, Budget(parse_bytes(keep))):
        for _ in range(4):
            taskpool.evaluate(nn.Linear(2, 4))
    assert taskpool.read == 4 * read + (6 - read)
    taskpool.evaluate(nn.Linear(2, 4))
    assert taskpool.read == 4 * read + (6 - read) + 6


def test_a_reader_that_stops_early_finds_the_same_batches_again_and_reads_no_others() -> None:
    read: list[int] = []

    def numbers() -> Iterator[torch.Tensor]:
        for number in range(5):
            read.append(number)
            yield torch.tensor([number])

    class Loader:
        def __iter__(self) -> Iterator[torch.Tensor]:
            return numbers()

    loader = KeptBatches(Loader(), Budget(1000))
    for stop in (2, 2, 3, 5, 5):
        assert [batch.item() for batch in islice(loader, stop)] == list(range(stop))
    assert [batch.item() for batch in loader] == list(range(5))
    assert [batch.item() for batch in loader] == list(range(5))
    assert read == list(range(5))


@pytest.mark.parametrize("size", [0, 8, 24, 39])
def test_a_loader_that_does_not_fit_gives_all_its_batches_and_its_memory_back(size: int) -> None:
    budget = Budget(size)
    loader = KeptBatches([torch.tensor([number]) for number in range(5)], budget)
    for _ in range(3):
        assert [batch.item() for batch in loader] == list(range(5))
    assert budget.left == size


@pytest.mark.parametrize("options", [{}, {"executor": "stacked"}, {"device_map": ["cpu:0", "cpu:1", "cpu:0"]}])
@pytest.mark.parametrize("method", METHODS)
def test_members_run_once_a_batch(method: type[SelectingEnsembleAlgorithm], options: dict[str, Any]) -> None:
    models, taskpool = members(3), pool()
    ensemble = method(selection_taskpool=taskpool, **options).run(models)
    assert taskpool.evaluations > 5
    assert [member.runs for member in models.values()] == [2 * 3] * 3
    ensemble(torch.zeros(1, 2))
    assert sum(member.runs for member in models.values()) > 2 * 3 * 3  # now they are run again
    ensemble.close()


@pytest.mark.parametrize("keep", [0, "4GiB"])
def test_a_cache_on_disk_serves_the_next_search_and_what_does_not_fit_in_memory(
    keep: int | str, tmp_path: Path
) -> None:
    models = members(3)
    options: dict[str, Any] = {"cache": "disk", "cache_dir": str(tmp_path), "cache_bytes": 0, "keep_bytes": keep}
    first, second = (GreedyEnsembleAlgorithm(selection_taskpool=pool(), **options) for _ in range(2))
    first.run(models)
    assert [member.runs for member in models.values()] == [2 * 3] * 3
    second.run(models)
    assert [member.runs for member in models.values()] == [2 * 3] * 3
    assert first.selection == second.selection == _by(GreedyEnsembleAlgorithm(selection_taskpool=pool()))


def test_members_run_once_for_a_task_pool_too_that_makes_its_data_anew_and_copies_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Anew(PointsTaskPool):
        def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
            self.setup()
            return super().evaluate(copy.deepcopy(model))

    plain, batches = Member.forward, []

    def forward(self: Member, inputs: torch.Tensor) -> torch.Tensor:
        batches.append(len(inputs))
        return plain(self, inputs)

    monkeypatch.setattr(Member, "forward", forward)
    method = GreedyEnsembleAlgorithm(selection_taskpool=Anew({"left": points(0)}))
    method.run(members(3))
    assert sum(batches) == 3 * 120
    assert method.selection == _by(GreedyEnsembleAlgorithm(selection_taskpool=PointsTaskPool({"left": points(0)})))


def _by(method: SelectingEnsembleAlgorithm) -> Selection:
    method.run(members(3))
    return method.selection


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_changes_nothing(method: type[SelectingEnsembleAlgorithm]) -> None:
    chosen = []
    for keep in (0, "3KiB", "1GiB"):
        models = members(3)
        made = method(selection_taskpool=pool(), keep_bytes=keep)
        made.run(models)
        chosen.append(made.selection)
        assert (keep == "1GiB") == (sum(member.runs for member in models.values()) == 2 * 3 * 3)
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_task_pool_is_made_from_its_config_with_the_programs_fabric(tmp_path: Path) -> None:
    method = GreedyEnsembleAlgorithm(selection_taskpool=CONFIG, size=2)
    method._program = program(None, tmp_path)
    method.run(members(2))
    written = json.loads((tmp_path / "selection_report.json").read_text())
    assert written["weights"] == pytest.approx(method.selection.weights)
    assert (written["metric"], written["same_data"], written["warning"]) == ("accuracy", [], "")


@pytest.mark.parametrize("reported", [CONFIG, {**CONFIG, "dataloader_kwargs": {}, "_target_": "another.TaskPool"}])
def test_choosing_on_the_data_that_are_reported_is_refused(reported: dict[str, Any]) -> None:
    method = GreedyEnsembleAlgorithm(selection_taskpool=CONFIG)
    method._program = program(reported)
    with pytest.raises(ValueError, match=r"reported afterwards \(left\).*allow_same_data=true"):
        method.run(Unloadable())


def test_the_command_lines_program_refuses_the_benchmarks_own_test_pictures(
    host_config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pools = "CLIPVisionModelTaskPool/clip-vit-tiny_TA4"
    given = ["method=ensemble/greedy_ensemble", "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4", f"taskpool={pools}"]
    given += [f"taskpool@method.selection_taskpool={pools}_selection", "print_config=false"]
    given += ["path.log_dir=log", "path.work_dir=.", "fabric.loggers=null"]  # no Hydra job runs here
    with initialize_config_dir(str(host_config_dir), version_base=None):
        config = compose("fabric_model_fusion", given)
    made = instantiate(config, _recursive_=False)
    with pytest.raises(ValueError, match=r"reported afterwards \(mnist, digits, faces, textures\)"):
        made.run()


def test_if_that_is_allowed_the_report_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    method = LearnedWeightsAlgorithm(selection_taskpool=CONFIG, allow_same_data=True, evaluations=5)
    method._program = program(CONFIG, tmp_path)
    with caplog.at_level(logging.WARNING):
        method.run(members(2))
    told = "chosen on the data that are reported (left): the reported accuracy is too good for new data"
    assert json.loads((tmp_path / "selection_report.json").read_text())["warning"] == told
    assert told in [record.getMessage() for record in caplog.records]


def test_the_very_task_pool_that_reports_is_recognised() -> None:
    taskpool = pool()
    method = GreedyEnsembleAlgorithm(selection_taskpool=taskpool)
    method._program = program(taskpool)
    with pytest.raises(ValueError, match=r"\(left, right\)"):
        method.run(Unloadable())


def test_halves_of_one_data_set_are_different_data() -> None:
    def half(first: int) -> dict[str, Any]:
        data = {"_target_": "fusion_ensemble_plugin.selection.data.every_nth", "first": first}
        return {**CONFIG, "test_datasets": {"left": {**data, "dataset": CONFIG["test_datasets"]["left"]}}}  # type: ignore[index]

    method = GreedyEnsembleAlgorithm(selection_taskpool=half(0), size=2)
    method._program = program(half(1))
    method.run(members(2))
    for reported in (half(0), CONFIG):
        method._program = program(reported)
        with pytest.raises(ValueError, match="reported afterwards"):
            method.run(Unloadable())


@pytest.mark.parametrize(
    ("chosen_by", "reported", "same"),
    [
        (["cola", "rte"], ["rte"], ["rte"]),
        ("cola", ["cola"], ["cola"]),
        ([{"name": "cola", "dataset": {"split": "test"}}], [{"name": "cola", "dataset": {"split": "validation"}}], []),
        ([{"name": "cola", "dataset": {"split": "test"}}], [{"name": "sst2", "dataset": {"split": "test"}}], ["cola"]),
    ],
)
def test_tasks_in_a_list_are_compared_too(chosen_by: Any, reported: Any, same: list[str]) -> None:
    assert same_data({"type": "a", "tasks": chosen_by}, program({"_target_": "b", "tasks": reported})) == same


def test_task_pools_that_say_nothing_of_their_data_are_the_same_if_their_other_options_are() -> None:
    spec = {"_target_": "a.TaskPool", "data_dir": "x", "batch_size": 1}
    assert same_data(spec, program({**spec, "batch_size": 2})) == ["all"]
    assert same_data(spec, program({**spec, "data_dir": "y"})) == []
    assert same_data(spec, program(None)) == same_data(spec, None) == []


def test_a_task_pool_of_the_hosts_older_kind_is_made_by_its_type() -> None:
    method = GreedyEnsembleAlgorithm(selection_taskpool={"type": "no such", "tasks": ["a"]})
    with pytest.raises(ValueError, match="Unknown task pool: no such"):
        method.run(members(2))
    assert make_taskpool(OmegaConf.create({"type": "FlanT5GLUETextGenerationTaskPool", "tasks": []}), None) is not None


def test_a_folder_that_cannot_be_written_to_costs_a_warning_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    method = GreedyEnsembleAlgorithm(selection_taskpool=CONFIG, size=1)
    method._program = program(None, tmp_path / "file")
    assert method.run(members(2)).member_weights
    assert "selection_report.json could not be written" in caplog.text


class Unloadable:
    """A pool that must not be loaded from."""

    model_names = ("mnist", "svhn")

    def load_model(self, name: str) -> nn.Module:
        raise AssertionError("a model was loaded before all options were checked")


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (GreedyEnsembleAlgorithm, {}, ["selection_taskpool=None", "taskpool@method.selection_taskpool="]),
        (GreedyEnsembleAlgorithm, {"selection_taskpool": {"test_datasets": {}}}, ["has no _target_"]),
        (
            GreedyEnsembleAlgorithm,
            {"tasks": ["left", "up"]},
            ["no task 'up' in selection_taskpool; it has left, right"],
        ),
        (GreedyEnsembleAlgorithm, {"tasks": []}, ["tasks=[]"]),
        (GreedyEnsembleAlgorithm, {"direction": "up"}, ["direction='up'", "auto, max, min"]),
        (GreedyEnsembleAlgorithm, {"weights": [1, 2]}, ["weights: they are what is chosen"]),
        (GreedyEnsembleAlgorithm, {"reducer": "median"}, ["reducer='median' takes no weights"]),
        (GreedyEnsembleAlgorithm, {"member_parallel": True}, ["spread over ranks cannot be chosen among"]),
        (GreedyEnsembleAlgorithm, {"keep_bytes": "much"}, ["'much' is no number of bytes"]),
        (
            GreedyEnsembleAlgorithm,
            {"size": 0, "sorted_start": -1, "bags": 1.5, "bag_share": 0, "seed": True},
            ["size=0", "sorted_start=-1", "bags=1.5", "bag_share=0", "seed=True"],
        ),
        (LearnedWeightsAlgorithm, {"evaluations": 0}, ["evaluations=0: a whole number >= 1"]),
        (CalibratedEnsembleAlgorithm, {"reducer": "mean"}, ["only calibrated_mean has a pooled temperature"]),
        (
            CalibratedEnsembleAlgorithm,
            {"reducer": "teapot", "tasks": "left"},
            ["unknown reducer 'teapot'", "tasks='left'"],
        ),
    ],
)
def test_a_wrong_option_is_told_before_any_model_is_loaded(
    method: type[SelectingEnsembleAlgorithm], options: dict[str, Any], told: list[str]
) -> None:
    given = {"selection_taskpool": pool(), **options} if options else {}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        method(**given).run(Unloadable())
    assert [words for words in told if words not in str(caught.value)] == []


def test_an_unknown_metric_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no metric 'f1' of 'left', 'right'; the report has 'accuracy', 'loss'"):
        GreedyEnsembleAlgorithm(selection_taskpool=pool(), metric="f1").run(members(2))


def test_tasks_without_class_scores_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    taskpool = pool(metrics={"right": ["accuracy"]})
    with caplog.at_level(logging.WARNING):
        method = CalibratedEnsembleAlgorithm(selection_taskpool=taskpool)
        ensemble = method.run(members(3))
    assert method.selection.after == pytest.approx(value("loss", ensemble, {"left": points(0)}))
    assert "left out, as their reports have no 'loss': right" in caplog.text


def test_members_that_make_no_class_scores_cannot_be_calibrated() -> None:
    class Features(nn.Module):
        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pooler_output": inputs}

    with pytest.raises(ValueError, match="combines class scores and looks for them in 'logits'"):
        CalibratedEnsembleAlgorithm(selection_taskpool=pool()).run([Features(), Features()])


def chosen_by_a_rank(rank: int) -> tuple[float, ...]:
    """Choose by data that this rank alone has."""
    taskpool = PointsTaskPool({"left": points(rank, 30)})
    return LearnedWeightsAlgorithm(selection_taskpool=taskpool, evaluations=15).run(members(3)).member_weights


@pytest.mark.slow
def test_ranks_with_different_shares_of_the_data_choose_the_same_weights(tmp_path: Path) -> None:
    found = run_world(chosen_by_a_rank, 2, tmp_path)
    assert found[0] == found[1]
    assert all(found[0] != chosen_by_a_rank(rank) for rank in range(2))  # what each would choose alone


def test_a_data_set_without_select_is_taken_in_parts_too() -> None:
    part = every_nth(points(0, 7), n=3, first=1)
    assert [int(label) for _, label in part] == points(0, 7).tensors[1][1::3].tolist()
    for wrong in ({"n": 0}, {"n": 2, "first": 2}, {"n": 9, "first": 8}):
        with pytest.raises(ValueError, match=r"first|samples"):
            every_nth(points(0, 7), **wrong)


def test_members_are_loaded_once() -> None:
    loaded: list[str] = []

    class Pool:
        model_names = ("mnist", "svhn")

        def load_model(self, name: str) -> nn.Module:
            loaded.append(name)
            return Member(len(loaded))

    GreedyEnsembleAlgorithm(selection_taskpool=pool()).run(Pool())
    assert loaded == ["mnist", "svhn"]
