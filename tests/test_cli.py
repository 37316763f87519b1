"""The main job as a user runs it: the `fusion_bench` command, in folders of all kinds, on the offline benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning
import pytest
import torch
from conftest import RunCli
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

REPO = Path(__file__).parent.parent
BENCHMARK = [
    "modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4",
    "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4",
]
MAIN_JOB = ["method=ensemble/simple_ensemble", *BENCHMARK]
TASKS = ["mnist", "digits", "faces", "textures"]


def reports(folder: Path) -> list[dict[str, Any]]:
    """Return the reports that the program has written under a folder, in the order of the runs."""
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("program_report.json"))]


def figures(report: dict[str, Any], name: str) -> list[float]:
    """Return each task's accuracy or loss."""
    return [report[task][name] for task in TASKS]


def contents(folder: Path) -> set[Path]:
    """Return what lies in a folder, without the tools' hidden caches."""
    return {path for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def pools(host_config_dir: Path) -> tuple[list[nn.Module], CLIPVisionModelTaskPool]:
    """Return the benchmark's members and its task pool, as the host makes them."""
    with initialize_config_dir(str(host_config_dir), version_base=None):
        cfg = compose("fabric_model_fusion", MAIN_JOB)
    modelpool = instantiate(cfg.modelpool, _recursive_=False)
    taskpool = instantiate(cfg.taskpool, _recursive_=False)
    taskpool._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    return [modelpool.load_model(name) for name in modelpool.model_names], taskpool


@pytest.fixture(scope="module")
def host_report(pools: tuple[list[nn.Module], CLIPVisionModelTaskPool]) -> dict[str, Any]:
    """Return what the host's own ensemble gets from its task pool."""
    members, taskpool = pools
    return dict(taskpool.evaluate(EnsembleModule(members)))


@torch.no_grad()
def oracle(members: list[nn.Module], taskpool: CLIPVisionModelTaskPool, task: str) -> tuple[float, float]:
    """Return a task's accuracy and loss by a loop over the members in float64."""
    clip = taskpool.clip_model.double()
    members = [member.double().eval() for member in members]
    text = text_features(taskpool, task)
    correct, losses = [], []
    for images, labels in taskpool.test_dataloaders[task]:
        pooled = sum(member(images.double())[1] for member in members) / len(members)
        image = nn.functional.normalize(clip.visual_projection(pooled), dim=-1)
        logits = clip.logit_scale.exp() * image @ text.T
        correct += (logits.argmax(-1) == labels).tolist()
        losses.append(nn.functional.cross_entropy(logits, labels).item())
    return fmean(correct), fmean(losses)  # the host averages the loss over batches


def text_features(taskpool: CLIPVisionModelTaskPool, task: str) -> Tensor:
    """Return one direction a class, (classes, features)."""
    classnames, templates = get_classnames_and_templates(task)
    features = []
    for name in classnames:
        tokens = taskpool.processor(text=[t(name) for t in templates], return_tensors="pt", padding=True)
        embedded = taskpool.clip_model.text_projection(taskpool.clip_model.text_model(**tokens)[1])
        features.append(nn.functional.normalize(embedded, dim=-1).mean(0))
    return nn.functional.normalize(torch.stack(features), dim=-1)


def test_from_an_empty_folder_the_report_equals_the_hosts_and_a_float64_loop(
    run_cli: RunCli,
    tmp_path: Path,
    pools: tuple[list[nn.Module], CLIPVisionModelTaskPool],
    host_report: dict[str, Any],
) -> None:
    run_cli(*MAIN_JOB, cwd=tmp_path)
    (report,) = reports(tmp_path)
    expected = [oracle(*pools, task) for task in TASKS]
    assert figures(report, "accuracy") == pytest.approx([accuracy for accuracy, _ in expected], abs=1e-7)
    assert figures(report, "loss") == pytest.approx([loss for _, loss in expected], abs=1e-5)
    assert figures(report, "accuracy") == figures(host_report, "accuracy")
    assert figures(report, "loss") == pytest.approx(figures(host_report, "loss"), abs=1e-5)


def test_from_this_repositorys_root_it_runs_and_leaves_nothing_there(run_cli: RunCli, tmp_path: Path) -> None:
    before = contents(REPO)
    run_cli(*MAIN_JOB, "fast_dev_run=true", cwd=REPO, env={"FUSION_BENCH_PROJECT_ROOT": str(tmp_path)})
    (report,) = reports(tmp_path)
    assert set(TASKS) <= set(report)
    assert contents(REPO) == before


def test_a_sweep_beside_an_unrelated_config_folder_gives_one_report_on_one_device_and_on_lanes(
    run_cli: RunCli, tmp_path: Path
) -> None:
    unrelated = tmp_path / "config/database/postgres.yaml"
    unrelated.parent.mkdir(parents=True)
    unrelated.write_text("port: 5432\n")
    sweep = "method.device_map=null,[cpu:0,cpu:1,cpu:0,cpu:1]"
    # by default the host writes every job's report of a sweep to the same file
    own_report = "report_save_path=${hydra:runtime.output_dir}/program_report.json"
    run_cli("-m", *MAIN_JOB, sweep, own_report, "fast_dev_run=true", cwd=tmp_path)
    one_device, lanes = reports(tmp_path)
    assert figures(one_device, "accuracy") == figures(lanes, "accuracy")
    assert figures(one_device, "loss") == pytest.approx(figures(lanes, "loss"), abs=1e-5)


def test_members_are_placed_by_name_while_the_task_pool_moves_nothing(run_cli: RunCli, tmp_path: Path) -> None:
    device_map = "method.device_map={mnist:cpu:0,digits:cpu:1,faces:cpu:1,textures:cpu:0}"
    run_cli(*MAIN_JOB, device_map, "taskpool.move_to_device=false", "fast_dev_run=true", cwd=tmp_path)
    (report,) = reports(tmp_path)
    assert set(TASKS) <= set(report)


def test_a_dry_run_shows_our_method_and_neither_loads_nor_evaluates_anything(run_cli: RunCli, tmp_path: Path) -> None:
    nowhere = "modelpool.models.digits.pretrained_model_name_or_path=/no/such/folder"
    done = run_cli(*MAIN_JOB, "method.device_map=auto", nowhere, "dry_run=true", cwd=tmp_path)
    assert "fusion_ensemble_plugin.SimpleEnsembleAlgorithm" in done.stdout
    assert reports(tmp_path) == []


def test_switched_off_the_hosts_class_is_what_runs(run_cli: RunCli, tmp_path: Path) -> None:
    switched_off = {"FUSION_ENSEMBLE_PLUGIN": "off"}
    done = run_cli("--cfg", "job", MAIN_JOB[0], cwd=tmp_path, env=switched_off)
    assert "_target_: fusion_bench.method.SimpleEnsembleAlgorithm" in done.stdout
    assert "fusion_ensemble_plugin" not in done.stdout


def test_a_wrong_device_map_is_one_error_that_lists_every_problem(run_cli: RunCli, tmp_path: Path) -> None:
    device_map = "method.device_map={mnist:cpu:0,digits:cpu:1,faces:teapot,svhn:cpu:1}"
    done = run_cli(*MAIN_JOB, device_map, cwd=tmp_path, check=False)
    assert done.returncode != 0
    message = done.stderr[done.stderr.rindex("ValueError") :]
    assert all(problem in message for problem in ("svhn", "textures", "teapot"))
