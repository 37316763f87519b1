"""Copying weights to an accelerator while it computes with others."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 2
"""Sets of weights on the device at a time: one computes while the next one is copied."""


@dataclass
class Visit:
    """Weights on their way to, or on, a device.

    Attributes:
        weights: Name to tensor on the device.
        ready: Set once they have arrived; None if they have.
    """

    weights: dict[str, Tensor]
    ready: torch.cuda.Event | None = None


class WeightStream:
    """Copies weights to one device, on a CUDA stream of its own where it is a CUDA device.

    At most `SLOTS` sets are there at a time: `send` waits until the computation of the last but one has ended, while
    that of the last one keeps the device busy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._open = 0
        self._ended: deque[torch.cuda.Event] = deque()

    def send(self, weights: Mapping[str, Tensor]) -> Visit:
        """Begin to copy weights from (pinned) CPU memory."""
        if self._copying is None:
            return Visit({name: tensor.to(self.device) for name, tensor in weights.items()})
        while self._ended and self._open + len(self._ended) >= SLOTS:
            self._ended.popleft().synchronize()
        self._open += 1
        with torch.cuda.stream(self._copying):
            visit = Visit({name: tensor.to(self.device, non_blocking=True) for name, tensor in weights.items()})
            visit.ready = self._copying.record_event()
        return visit

    def begin(self, visit: Visit) -> None:
        """Let the current stream wait for the weights."""
        if visit.ready is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(visit.ready)
            for tensor in visit.weights.values():
                tensor.record_stream(computing)

    def end(self, visit: Visit) -> None:
        """Mark the end of the computation with these weights."""
        if visit.ready is not None:
            self._open -= 1
            self._ended.append(torch.cuda.current_stream(self.device).record_event())
        visit.weights.clear()
