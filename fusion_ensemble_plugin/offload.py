"""Members larger than memory: their weights rest in CPU memory or in a file and visit their device to compute."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from threading import RLock
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion_ensemble_plugin.memory import return_freed
from fusion_ensemble_plugin.streaming import Visit, WeightStream


class OffloadedMember:
    """Keeps one member's weights off its device between calls.

    The member stays an ordinary module, whose state dict can be read and written at any time. At rest its tensors are
    in CPU memory, pinned where there is CUDA (``kept="cpu"``), or mapped from a safetensors file (``kept="disk"``):
    pages are read when they are used and given back after each call. Its parameters require no gradients.

    Args:
        member: The module; its weights go to rest at once.
        kept: "cpu" or "disk".
    """

    _busy: AbstractContextManager[bool]
    _file: TensorFile | None
    _resting: dict[str, Tensor] | None
    _visit: Visit | None
    _versions: list[int]

    def __init__(self, member: nn.Module, kept: str) -> None:
        self.member = member.requires_grad_(False)
        self._kept = kept
        self._reset()
        self.settle()

    @contextmanager
    def at_work(self, stream: WeightStream | None) -> Iterator[nn.Module]:
        """Yield the member with its weights where it computes.

        Args:
            stream: What copies weights to its device; None if it computes on the CPU.
        """
        with self._busy:
            if self._resting is None or self._written():
                self.settle()
            visit = self._arrive(stream)
            try:
                yield self.member
            finally:
                self._leave(stream, visit)

    def prefetch(self, stream: WeightStream | None) -> None:
        """Begin to copy the weights to the device, or to read them from the disk, without waiting for either."""
        with self._busy:
            if stream is None and self._file is not None:
                self._file.read_ahead()
            elif stream is not None and self._visit is None and self._resting is not None:
                self._visit = stream.send(self._resting)

    def settle(self) -> None:
        """Take the weights that the member has now, wherever they are, and put them to rest."""
        with self._busy, torch.inference_mode(False), torch.no_grad():
            weights = {name: tensor.detach().cpu() for name, tensor in self._tensors().items()}
            if self._kept == "disk":
                self._file = TensorFile(weights)
                weights = self._file.load()
            elif torch.cuda.is_available():
                weights = {name: tensor.pin_memory() for name, tensor in weights.items()}
            self._visit = None
            self._rest(weights)
        if self._kept == "disk":
            return_freed()

    def _arrive(self, stream: WeightStream | None) -> Visit | None:
        if stream is None:
            return None
        self.prefetch(stream)
        visit, self._visit = self._visit, None
        if visit is not None:
            stream.begin(visit)
            self._assign(visit.weights)
        return visit

    def _leave(self, stream: WeightStream | None, visit: Visit | None) -> None:
        """Go back to rest; weights that the call changed (running statistics, say) are kept."""
        if self._written():
            self.settle()
        elif self._resting is not None:
            with torch.inference_mode(False):
                self._rest(self._resting if self._file is None else self._file.load())
        if stream is not None and visit is not None:
            stream.end(visit)

    def _rest(self, weights: dict[str, Tensor]) -> None:
        self._resting = weights
        self._assign(weights)
        self._versions = [tensor._version for tensor in self._tensors().values()]

    def _written(self) -> bool:
        """Say whether a weight was written to since it was put to rest; assigning ``data`` does not count."""
        return self._versions != [tensor._version for tensor in self._tensors().values()]

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.data = weights[name]

    def _tensors(self) -> dict[str, Tensor]:
        return dict(chain(self.member.named_parameters(), self.member.named_buffers()))

    def _reset(self) -> None:
        self._busy = RLock()
        self._file = self._resting = self._visit = None
        self._versions = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry the weights in the member, and put them to rest on first use."""
        return {"member": self.member, "_kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()


class TensorFile:
    """Tensors in a temporary safetensors file, which goes with this object.

    The folder is the system's for temporary files (``TMPDIR``).
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        handle, self.path = tempfile.mkstemp(prefix="fusion-ensemble-", suffix=".safetensors")
        os.close(handle)
        weakref.finalize(self, _unlink, self.path, os.getpid())
        save_file(_apart(tensors), self.path)

    def load(self) -> dict[str, Tensor]:
        """Map the tensors anew; nothing is read before it is used. Memory is given back as an earlier mapping goes."""
        return load_file(self.path)

    def read_ahead(self) -> None:
        """Ask the system to read the file into its cache, in the background."""
        if hasattr(os, "posix_fadvise"):
            with open(self.path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors contiguous and each with memory of its own: safetensors refuses those that share theirs."""
    taken: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        whole = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes and memory.data_ptr() not in taken
        taken.add(memory.data_ptr())
        apart[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    return apart


def _unlink(path: str, owner: int) -> None:
    """Delete the file; not in a forked process, whose parent still needs it."""
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)
