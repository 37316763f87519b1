"""The offline benchmark's data: real pictures from installed packages, in fixed splits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fusion_bench.tasks.clip_classification import get_classnames_and_templates

from fusion_ensemble_plugin.demo import TASKS, load_dataset
from fusion_ensemble_plugin.demo.data import PATCH, SPLITS, pictures

SIZES = {"mnist": (3750, 1250), "digits": (1347, 450), "faces": (150, 50), "textures": (576, 192)}


@pytest.mark.parametrize("task", TASKS)
def test_each_picture_is_in_one_split(task: str) -> None:
    tested = pictures(task).tested
    assert (int((~tested).sum()), int(tested.sum())) == SIZES[task]


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_the_same_each_time(task: str) -> None:
    first, second = pictures(task), pictures.__wrapped__(task)
    for mine, other in zip(first, second):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("task", TASKS)
def test_each_class_has_its_share_of_the_test_pictures(task: str) -> None:
    _, labels, tested = pictures(task)
    for label in np.unique(labels):
        of_class = labels == label
        assert abs(int(tested[of_class].sum()) - 0.25 * int(of_class.sum())) <= 0.5


def test_no_test_patch_of_a_texture_overlaps_a_training_patch() -> None:
    from skimage import data

    images, labels, tested = pictures("textures")
    for label, source in enumerate([data.brick(), data.grass(), data.gravel()]):
        covered = np.zeros((2, *source.shape), dtype=bool)
        columns = source.shape[1] // PATCH
        for index, (patch, of_test) in enumerate(zip(images[labels == label], tested[labels == label])):
            top, left = PATCH * (index // columns), PATCH * (index % columns)
            np.testing.assert_array_equal(patch, source[top : top + PATCH, left : left + PATCH])
            covered[int(of_test), top : top + PATCH, left : left + PATCH] = True
        assert not covered.all(axis=0).any()


@pytest.mark.parametrize("task", [task for task in TASKS if task != "mnist"])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_what_fusion_bench_reads(task: str, split: str) -> None:
    dataset = load_dataset(task, split)
    images, labels, tested = pictures(task)
    chosen = np.flatnonzero(tested == (split == "test"))
    assert dataset[0]["image"].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(dataset[3]["image"])[..., 0], images[chosen[3]])
    assert dataset["label"] == labels[chosen].tolist()


@pytest.mark.parametrize("task", TASKS)
def test_fusion_bench_knows_a_prompt_for_each_class(task: str) -> None:
    classnames, templates = get_classnames_and_templates(task)
    assert len(classnames) == len(np.unique(pictures(task).labels))
    assert all(classname in template(classname) for template in templates for classname in classnames)


@pytest.mark.parametrize(("task", "split"), [("cifar10", "test"), ("digits", "validation")])
def test_an_unknown_data_set_is_refused_with_the_known_ones(task: str, split: str) -> None:
    with pytest.raises(ValueError, match=r"tasks are mnist, digits, faces, textures, splits are train, test"):
        load_dataset(task, split)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("skimage", "skimage.data"):
        monkeypatch.setitem(sys.modules, module, None)
    pictures.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r'skimage.*pip install "fusion-ensemble-plugin\[demo\]"'):
        load_dataset("faces", "test")
