"""Loading the members of a pool, one after another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn
from tqdm.auto import tqdm

from fusion_ensemble_plugin.memory import return_freed
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.sizes import checkpoint_bytes, module_bytes

log = logging.getLogger(__name__)


class MemberLoader:
    """Loads a pool's members, special models such as ``_pretrained_`` left out.

    Only one member is being loaded at a time: two would double the peak of host memory, and ``from_pretrained`` changes
    the default dtype of the whole process while it runs, so that loads side by side could spoil each other.

    Args:
        modelpool: A FusionBench model pool, a mapping of modules, or a sequence of modules (named "0", "1", ...).
        dtype: What floating weights are cast to; None leaves them.

    Raises:
        ValueError: If there are no members.
        TypeError: If it is no such pool.
    """

    def __init__(self, modelpool: Any, dtype: torch.dtype | None = None) -> None:
        self._modelpool = modelpool
        self._dtype = dtype
        self._loaded: dict[str, nn.Module] = {}
        self.names = _member_names(modelpool)

    def sizes(self, exact: bool = False) -> list[int] | None:
        """Return the bytes of each member, from checkpoint headers; None if they can't be known before loading.

        Args:
            exact: Load one member where headers are not at hand, and take the others for alike.
        """
        sizes = [checkpoint_bytes(self._source(name), self._dtype) for name in self.names]
        if None in sizes and exact:
            name = self.names[sizes.index(None)]
            self._loaded[name] = self._load(name)
            alike = module_bytes(self._loaded[name])
            return [alike if size is None else size for size in sizes]
        known = [size for size in sizes if size is not None]
        return known if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield each member, cast to the dtype, on the device that the pool loads it to."""
        quiet = getattr(rank_zero_only, "rank", 0) != 0
        with tqdm(self.names, unit="member", leave=False, disable=quiet) as progress:
            for name in progress:
                progress.set_description(f"loading {name}")
                yield self._loaded.pop(name) if name in self._loaded else self._load(name)
                return_freed()  # here it was moved to its place

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.names)

    def _load(self, name: str) -> nn.Module:
        """Load one member.

        Raises:
            Exception: The pool's own error, with a note that names the member.
            TypeError: If what the pool returned is not a module.
        """
        try:
            model = self._modelpool.load_model(name) if _is_pool(self._modelpool) else self._source(name)
            if not isinstance(model, nn.Module):
                raise TypeError(f"the pool returned {type(model).__name__} for {name!r}, not a torch module")
            return model if self._dtype is None else model.to(dtype=self._dtype)
        except Exception as error:
            self._loaded.clear()
            add_note(error, f"while loading ensemble member {name!r} (index {self.names.index(name)})")
            log.error("ensemble member %r could not be loaded: %s", name, error)
            raise

    def _source(self, name: str) -> Any:
        """Return what the pool holds for a member: a module, or what it is loaded from."""
        if _is_pool(self._modelpool):
            return (getattr(self._modelpool, "_models", None) or {}).get(name)
        return self._modelpool[name] if isinstance(self._modelpool, Mapping) else self._modelpool[int(name)]


def _is_pool(modelpool: Any) -> bool:
    return hasattr(modelpool, "load_model")


def _member_names(modelpool: Any) -> list[str]:
    if _is_pool(modelpool):
        names = [str(name) for name in modelpool.model_names]
    elif isinstance(modelpool, Mapping):
        names = list(modelpool)
    elif isinstance(modelpool, (Sequence, nn.ModuleList)):
        names = [str(index) for index in range(len(modelpool))]
    else:
        raise TypeError(f"a model pool or a list of modules is needed, not {type(modelpool).__name__}")
    if not names:
        raise ValueError("the model pool has no members to ensemble (names such as '_pretrained_' do not count)")
    return names
