"""Parts of a data set, so that one part can be chosen by and another one reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGET = f"{__name__}.every_nth"
"""How a config names `every_nth`."""


def every_nth(dataset: Any, n: int = 2, first: int = 0) -> Any:
    """Return every n-th sample of a data set; data sets are often sorted by class, and this keeps the classes' shares.

    Args:
        dataset: A Hugging Face data set, or any with a length and items.
        n: The distance between two samples.
        first: The first one's index, below n: parts of different ``first`` have no sample in common.

    Raises:
        ValueError: If there are no such parts, or no sample in this one.

    Examples:
        >>> list(every_nth(["a", "b", "c", "d", "e"], n=2, first=1))
        ['b', 'd']
    """
    if not (n >= 1 and 0 <= first < n):
        raise ValueError(f"n={n}, first={first}: n >= 1 and 0 <= first < n is needed")
    indices = range(first, len(dataset), n)
    if not indices:
        raise ValueError(f"a data set of {len(dataset)} samples has none from index {first} on")
    if hasattr(dataset, "select"):
        return dataset.select(indices)
    from torch.utils.data import Subset

    return Subset(dataset, indices)


def have_samples_in_common(config: Any, other: Any) -> bool:
    """Say whether two data sets, as configs, names or objects, are the same or parts that overlap.

    Examples:
        >>> even = {"_target_": TARGET, "dataset": {"_target_": "load"}, "n": 2, "first": 0}
        >>> have_samples_in_common(even, {"_target_": "load"}), have_samples_in_common(even, {**even, "first": 1})
        (True, False)
    """
    if not (isinstance(config, Mapping) and isinstance(other, Mapping)):
        return config is other or (isinstance(config, str) and config == other)
    (whole, n, first), (other_whole, other_n, other_first) = _part(config), _part(other)
    return bool(whole == other_whole) and not (n == other_n and first != other_first)


def _part(config: Mapping[str, Any]) -> tuple[Any, int, int]:
    """Return a data set's whole, and which part of it it is."""
    if config.get("_target_") != TARGET:
        return dict(config), 1, 0
    return config["dataset"], config.get("n", 2), config.get("first", 0)
