"""Loading the members of a pool, one after another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.transfer import torch_device

log = logging.getLogger(__name__)


def member_names(modelpool: Any) -> list[str]:
    """Return the names of a pool's members, special models such as ``_pretrained_`` left out.

    Args:
        modelpool: A FusionBench model pool, a mapping of modules, or a sequence of modules (named "0", "1", ...).

    Raises:
        ValueError: If there are no members.
        TypeError: If it is none of these.
    """
    if hasattr(modelpool, "load_model"):
        names = [str(name) for name in modelpool.model_names]
    elif isinstance(modelpool, Mapping):
        names = [str(name) for name in modelpool]
    elif isinstance(modelpool, (Sequence, nn.ModuleList)):
        names = [str(index) for index in range(len(modelpool))]
    else:
        raise TypeError(f"a model pool or a list of modules is needed, not {type(modelpool).__name__}")
    if not names:
        raise ValueError("the model pool has no members to ensemble (names such as '_pretrained_' do not count)")
    return names


def load_members(
    modelpool: Any, names: Sequence[str], placement: Placement | None, dtype: torch.dtype | None
) -> Iterator[nn.Module]:
    """Load each member, cast it and move it to its device before the next one starts.

    Raises:
        Exception: The pool's own error, with a note that names the member.
        TypeError: If what the pool returned is not a module.
    """
    for index, name in enumerate(names):
        try:
            model = _load(modelpool, index, name)
            device = torch_device(placement.devices[index]) if placement else None
            yield model if device is None and dtype is None else model.to(device, dtype)
        except Exception as error:
            add_note(error, f"while loading ensemble member {name!r} (index {index})")
            log.error("ensemble member %r could not be loaded: %s", name, error)
            raise


def _load(modelpool: Any, index: int, name: str) -> nn.Module:
    if hasattr(modelpool, "load_model"):
        model = modelpool.load_model(name)
    else:
        model = modelpool[name] if isinstance(modelpool, Mapping) else modelpool[index]
    if not isinstance(model, nn.Module):
        raise TypeError(f"the pool returned {type(model).__name__} for {name!r}, not a torch module")
    return model
