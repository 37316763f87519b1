"""Which members a rank loads, and what it knows of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusion_ensemble_plugin.absent import Absent
from fusion_ensemble_plugin.distributed.layout import Layout
from fusion_ensemble_plugin.loading import MemberLoader
from fusion_ensemble_plugin.sizes import checkpoint_bytes, module_bytes

Counts = tuple[int, int]
"""Numbers of trainable and of other parameters."""


class OwnMembers(MemberLoader):
    """Loads the members that this rank holds; an `Absent` stands for each of the others, whose files are not touched.

    Args:
        modelpool: As for `MemberLoader`.
        dtype: As for `MemberLoader`.
        layout: Who holds what.
    """

    def __init__(self, modelpool: Any, dtype: torch.dtype | None, layout: Layout) -> None:
        super().__init__(modelpool, dtype)
        self._layout = layout

    def sizes(self, exact: bool = False) -> list[int] | None:
        """Return the bytes of each member; 0 for those that other ranks hold."""
        own = {index: checkpoint_bytes(self._source(self.names[index]), self._dtype) for index in self._layout.own}
        unknown = [index for index, size in own.items() if size is None]
        if unknown and not exact:
            return None
        if unknown:
            name = self.names[unknown[0]]
            self._loaded[name] = self._load(name)
            own.update(dict.fromkeys(unknown, module_bytes(self._loaded[name])))
        return [own.get(index) or 0 for index in range(len(self.names))]

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield each member, or what stands for it."""
        for index, name in enumerate(self.names):
            if index not in self._layout.own:
                yield Absent(self._layout.holder(index))
            else:
                yield self._loaded.pop(name) if name in self._loaded else self._load(name)


class Elsewhere(nn.Module):
    """The parameters of the members that other ranks hold, as mere numbers: on no device, in no state dict.

    With it an ensemble has as many parameters on each rank as in one process, which is what reports count.

    Args:
        counts: How many there are.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.trainable = nn.Parameter(torch.empty(counts[0], device="meta"))
        self.frozen = nn.Parameter(torch.empty(counts[1], device="meta"), requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Elsewhere:
        """Stay on no device."""
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Leave nothing in a state dict."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Ask for nothing of a state dict."""


def parameter_counts(module: nn.Module) -> Counts:
    """Count a module's trainable and other parameters.

    Examples:
        >>> parameter_counts(nn.Linear(3, 2))
        (8, 0)
    """
    parameters: list[Tensor] = list(module.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in parameters) - trainable


def elsewhere(counts: Mapping[int, Counts], layout: Layout) -> Elsewhere:
    """Make what stands for the parameters that the other ranks of the team told of."""
    others = [counts[rank] for rank in layout.team if rank != layout.rank]
    return Elsewhere((sum(trainable for trainable, _ in others), sum(frozen for _, frozen in others)))
