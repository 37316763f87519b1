"""A small task pool of FusionBench's kind: classification of points in the plane, with a model pool to go with it."""

from __future__ import annotations

from typing import Any

import torch
from fusion_bench.taskpool import BaseTaskPool
from fusion_bench.utils.instantiate_utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4
CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])


class Count:
    """A number that is no part of what a member computes with, as a cache of outputs sees it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def __eq__(self, other: object) -> bool:
        """Say yes: members that ran another number of times are alike, and can run stacked."""
        return isinstance(other, Count)

    def __hash__(self) -> int:
        """Return the same for all."""
        return 0


class Member(nn.Module):
    """Scores points by their nearness to centres that it knows badly; counts how often it runs."""

    def __init__(self, seed: int, noise: float = 1.0, sharpness: float = 2.0) -> None:
        super().__init__()
        centres = CENTRES + noise * torch.randn(CLASSES, 2, generator=torch.Generator().manual_seed(seed))
        self.centres = nn.Parameter(centres)
        self.sharpness = sharpness
        self._count = Count()

    @property
    def runs(self) -> int:
        """How often it ran."""
        return self._count.number

    def forward(self, points: Tensor) -> Tensor:
        self._count.number += 1
        return -self.sharpness * torch.cdist(points, self.centres)


def members(count: int = 4, **options: Any) -> dict[str, nn.Module]:
    """Return members with names that are not easy."""
    names = ["mnist", "a.b", "keys", "7", "svhn", "dtd"][:count]
    return {name: Member(seed, **options) for seed, name in enumerate(names)}


def points(seed: int, count: int = 120) -> TensorDataset:
    """Return points around the centres, with the centre as their class."""
    generator = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return TensorDataset(CENTRES[labels] + 1.2 * torch.randn(count, 2, generator=generator), labels)


class PointsTaskPool(BaseTaskPool):
    """Evaluates class scores of points; counts the batches that it reads.

    Args:
        test_datasets: Task to data set, or the config of one.
        metrics: Task to the metrics that its report has; all other tasks have accuracy and loss.
    """

    _is_setup = False

    def __init__(self, test_datasets: Any, metrics: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._test_datasets = test_datasets
        self._metrics = metrics or {}
        self.read = 0
        self.evaluations = 0

    def setup(self) -> None:
        """Make the data loaders."""
        made = {
            task: instantiate(data) if hasattr(data, "keys") else data for task, data in self._test_datasets.items()
        }
        self.test_dataloaders = {
            task: DataLoader(data, batch_size=50, collate_fn=self._collate) for task, data in made.items()
        }
        self._is_setup = True

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return accuracy and loss by task, as FusionBench's pools of images do."""
        if not self._is_setup:
            self.setup()
        model.eval()
        self.evaluations += 1
        report: dict[str, Any] = {"model_info": {"all_params": sum(p.numel() for p in model.parameters())}}
        for task, loader in self.test_dataloaders.items():
            found = [(model(inputs), labels) for inputs, labels in loader]
            logits, labels = (torch.cat(each) for each in zip(*found))
            values = {
                "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
                "loss": F.cross_entropy(logits.double(), labels).item(),
            }
            report[task] = {name: values[name] for name in self._metrics.get(task, values)}
        return report

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        self.read += 1
        inputs, labels = zip(*samples)
        return torch.stack(inputs), torch.stack(labels)
