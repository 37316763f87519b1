"""Members with a head each, as in FusionBench's eight-task ConvNeXt pool: combined below it, then the task's head."""

from __future__ import annotations

import copy
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import typing_extensions
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.models.wrappers.switch import set_active_option
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

CLASSES = {"mnist": 10, "stanford-cars": 7, "dtd": 4}
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


def classifier(classes: int, seed: int, prefix: str) -> ConvNextForImageClassification:
    torch.manual_seed(seed)
    labels = {index: f"{prefix} {index}" for index in range(classes)}
    config = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16, id2label=labels)
    return ConvNextForImageClassification(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        classifier(classes, seed, name).save_pretrained(path / name)
    return path


@pytest.fixture
def pool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return FusionBench's own pool of them."""
    if sys.version_info < (3, 12):  # below, its module imports a name that typing does not have
        monkeypatch.setattr(typing, "override", typing_extensions.override, raising=False)
    from fusion_bench.modelpool import ConvNextForImageClassificationPool

    return ConvNextForImageClassificationPool({name: str(folder / name) for name in CLASSES})


def with_targets(classes: Iterable[int]) -> list[ConvNextForImageClassification]:
    models = [classifier(count, seed, f"task {seed}") for seed, count in enumerate(classes)]
    for model in models:
        model._fusion_bench_target_modules = ["convnext"]
    return models


@torch.no_grad()
def oracle(folder: Path, task: str, weights: tuple[float, ...] = (1, 1, 1), x: Tensor = PIXELS) -> Tensor:
    """Return the task's head on the weighted mean of the pooled features, in float64."""
    models = [ConvNextForImageClassification.from_pretrained(folder / name).double() for name in CLASSES]
    pooled = sum(w * m.convnext(x.double()).pooler_output for w, m in zip(weights, models)) / sum(weights)
    return models[list(CLASSES).index(task)].classifier(pooled)


@torch.no_grad()
@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1", "cpu:0"]], ids=["no map", "two lanes"])
def test_the_task_that_is_evaluated_chooses_the_head(pool: Any, folder: Path, device_map: Any) -> None:
    ensemble = SimpleEnsembleAlgorithm(device_map=device_map).run(pool)
    torch.testing.assert_close(ensemble(PIXELS).double(), oracle(folder, "mnist"), atol=1e-5, rtol=1e-5)
    for task in ("dtd", "stanford-cars", "mnist"):
        assert set_active_option(ensemble, task)
        found = ensemble(pixel_values=PIXELS)
        assert found.shape == (2, CLASSES[task])
        torch.testing.assert_close(found.double(), oracle(folder, task), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_count_below_the_head(pool: Any, folder: Path) -> None:
    ensemble = SimpleEnsembleAlgorithm(weights=[1, 0, 3]).run(pool)
    set_active_option(ensemble, "stanford-cars")
    expected = oracle(folder, "stanford-cars", (1, 0, 3))
    torch.testing.assert_close(ensemble(PIXELS).double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_of_copies_it_means_what_the_hosts_average_of_weights_means(pool: Any, folder: Path) -> None:
    ensemble, merged = SimpleEnsembleAlgorithm().run(pool), SimpleAverageAlgorithm(show_pbar=False).run(pool)
    body = merged.convnext.state_dict()
    for member in ensemble.model_list:
        member.convnext.load_state_dict(body)
    torch.testing.assert_close(ensemble(PIXELS), merged(PIXELS))


@torch.no_grad()
def test_a_task_without_a_head_is_told_with_those_there_are(pool: Any) -> None:
    with pytest.raises(ValueError, match="mnist"):
        set_active_option(SimpleEnsembleAlgorithm().run(pool), "sun397")


@torch.no_grad()
def test_tasks_have_any_name_that_a_member_can_have() -> None:
    names = ["keys", "a.b", "a_b", "MNIST", "mnist", "org/cars"]
    ensemble = ParallelEnsemble(with_targets(range(2, 8)), names=names)
    for task, classes in zip([*names, "Org-Cars"], [*range(2, 8), 7]):
        assert set_active_option(ensemble, task)
        assert ensemble(PIXELS).logits.shape == (2, classes)
    with pytest.raises(ValueError, match=r"task 'Mnist': needed is one member .*'MNIST', 'mnist'"):
        set_active_option(ensemble, "Mnist")
    assert ensemble(PIXELS).logits.shape == (2, 7)


@torch.no_grad()
@pytest.mark.parametrize("option", ["cached", "offloaded"])
def test_heads_are_applied_to_members_that_are(option: str, pool: Any, folder: Path) -> None:
    options = {
        "cached": {"cache": "memory"},
        "offloaded": {"device_map": "cpu", "offload": "disk", "max_memory": {"cpu": "30KiB"}},
    }
    ensemble = SimpleEnsembleAlgorithm(**options[option]).run(pool)
    assert (ensemble.cache is not None, bool(ensemble.placement and ensemble.placement.offloaded)) == (
        option == "cached",
        option == "offloaded",
    )
    for task in ("dtd", "mnist", "dtd"):
        set_active_option(ensemble, task)
        torch.testing.assert_close(ensemble(PIXELS).double(), oracle(folder, task), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_heads_that_are_all_the_same_are_averaged_as_any_output(folder: Path, pool: Any) -> None:
    for seed in range(2):
        classifier(5, seed, "pet").save_pretrained(folder / f"pets{seed}")
    models = type(pool)({f"pets{seed}": str(folder / f"pets{seed}") for seed in range(2)})
    ensemble = SimpleEnsembleAlgorithm().run(models)
    assert ensemble.task_heads is None
    torch.testing.assert_close(ensemble(PIXELS), sum(classifier(5, s, "pet")(PIXELS).logits for s in range(2)) / 2)


@torch.no_grad()
def test_heads_of_one_width_for_other_classes_are_heads_of_their_own(folder: Path, pool: Any) -> None:
    for seed, task in enumerate(("cats", "dogs")):
        classifier(5, seed, task).save_pretrained(folder / task)
    ensemble = SimpleEnsembleAlgorithm().run(type(pool)({task: str(folder / task) for task in ("cats", "dogs")}))
    first = ensemble(PIXELS)
    set_active_option(ensemble, "dogs")
    assert not torch.allclose(ensemble(PIXELS), first)


@torch.no_grad()
def test_it_is_saved_and_loaded_and_chooses_heads_as_before(pool: Any, folder: Path, tmp_path: Path) -> None:
    ensemble = SimpleEnsembleAlgorithm().run(pool)
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = ParallelEnsemble.from_pretrained(tmp_path / "saved")
    for task in CLASSES:
        set_active_option(ensemble, task)
        set_active_option(loaded, task)
        assert torch.equal(loaded(PIXELS), ensemble(PIXELS))


@torch.no_grad()
def test_a_subset_keeps_every_head(pool: Any, folder: Path) -> None:
    part = SimpleEnsembleAlgorithm().run(pool).subset([0, 1])
    set_active_option(part, "dtd")
    torch.testing.assert_close(part(PIXELS).double(), oracle(folder, "dtd", (1, 1, 0)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_copy_has_heads_of_its_own(folder: Path) -> None:
    models = [ConvNextForImageClassification.from_pretrained(folder / name) for name in CLASSES]
    for model in models:
        model._fusion_bench_target_modules = ["convnext"]
    ensemble = ParallelEnsemble(models, names=tuple(CLASSES))
    other = copy.deepcopy(ensemble)
    set_active_option(other, "dtd")
    nn.init.zeros_(other.model_list[2].classifier.weight)
    assert other(PIXELS).logits.shape == (2, 4)
    assert ensemble(PIXELS).logits.shape == (2, 10)
    assert torch.equal(other(PIXELS).logits, other.model_list[2].classifier.bias.expand(2, 4))


def test_members_that_share_no_submodule_are_told(folder: Path) -> None:
    models = [ConvNextForImageClassification.from_pretrained(folder / name) for name in CLASSES]
    models[0]._fusion_bench_target_modules = ["convnext"]
    with pytest.raises(ValueError, match=r"'mnist': \['convnext'\], 'stanford-cars': None"):
        ParallelEnsemble(models, names=tuple(CLASSES))
