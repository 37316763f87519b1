"""Choosing in the host's own CLIP task pool, on two tasks of the offline benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.utils.instantiate_utils import instantiate
from hydra import compose, initialize_config_dir
from transformers import CLIPVisionModel

from fusion_ensemble_plugin import ClipLogitEnsemble, ParallelEnsemble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

TASKS = ("faces", "textures")
POOLS = "CLIPVisionModelTaskPool/clip-vit-tiny_TA4"


@pytest.fixture(scope="module")
def compose_method(host_config_dir: Path) -> Callable[..., Any]:
    """Return a function that composes a method and the pools as the command line does."""

    def composed(*overrides: str) -> Any:
        given = ["modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4", f"taskpool={POOLS}_holdout", *overrides]
        given.append(f"taskpool@method.selection_taskpool={POOLS}_selection")
        with initialize_config_dir(str(host_config_dir), version_base=None):
            return compose("fabric_model_fusion", given)

    return composed


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the towers' forwards."""
    counted: list[int] = []
    plain = CLIPVisionModel.forward

    def forward(self: CLIPVisionModel, *args: Any, **kwargs: Any) -> Any:
        counted.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionModel, "forward", forward)
    return counted


def two_tasks(config: Any) -> CLIPVisionModelTaskPool:
    """Return the task pool with two of its tasks."""
    data = {task: config.test_datasets[task] for task in TASKS}
    made: CLIPVisionModelTaskPool = instantiate({**config, "test_datasets": data}, _recursive_=False)
    made._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    return made


@pytest.mark.parametrize(
    ("name", "overrides", "kind"),
    [
        ("calibrated_ensemble", [], ClipLogitEnsemble),
        ("greedy_ensemble", ["method.size=3", "method.reducer=probability_mean"], ClipLogitEnsemble),
        ("learned_weights", ["method.evaluations=6", "method.output_keys=[pooler_output]"], ParallelEnsemble),
    ],
)
def test_what_is_chosen_is_what_the_hosts_task_pool_then_reports(
    name: str, overrides: list[str], kind: type, compose_method: Callable[..., Any], forwards: list[int]
) -> None:
    config = compose_method(f"method=ensemble/{name}", *overrides, "method.metric=loss")
    method = instantiate(config.method, _recursive_=False)
    method.selection_taskpool = two_tasks(config.method.selection_taskpool)
    ensemble = method.run(instantiate(config.modelpool, _recursive_=False))
    assert type(ensemble) is kind
    batches = sum(map(len, method.selection_taskpool.test_dataloaders.values()))
    assert len(forwards) == 4 * batches
    assert method.selection.evaluations > 5
    report = two_tasks(config.method.selection_taskpool).evaluate(ensemble)
    assert report["average"]["loss"] == pytest.approx(method.selection.after, abs=1e-6)
    assert method.selection.after <= method.selection.before
    assert torch.is_tensor(ensemble(torch.zeros(1, 3, 32, 32))) == (kind is ClipLogitEnsemble)
