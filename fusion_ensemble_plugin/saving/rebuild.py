"""Transformers models as members: written as their class's name and config, and made anew from these.

Only classes that transformers itself exports are made, by name; nothing else is imported for a saved ensemble.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from fusion_ensemble_plugin.heads import returns_logits
from fusion_ensemble_plugin.saving.weights import Tensors

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"


class LogitsForward:
    """A model's ``forward`` that returns the bare logits, as the models of FusionBench's image pools have it.

    Unlike a function that has closed over one model, it belongs to the copy when the model is copied, and it pickles.
    """

    returns_logits = True

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Return the logits, (batch, classes)."""
        return self.original(pixel_values=pixel_values, **kwargs).logits


def is_rebuildable(member: nn.Module) -> bool:
    """Say whether a member is what its class makes of its config, in all but the values of its weights."""
    cls = type(member)
    if not isinstance(member, PreTrainedModel) or getattr(transformers, cls.__name__, None) is not cls:
        return False
    if type(member.config) is not cls.config_class or ("forward" in vars(member) and not returns_logits(member)):
        return False
    try:
        with torch.device("meta"):
            made = cls(_plain_config(member))
    except Exception as error:  # a class may need more than its config
        log.debug("%s can't be made from its config: %s", cls.__name__, error)
        return False
    return _structure(made) == _structure(member)


def attention_of(member: PreTrainedModel) -> dict[str, str]:
    """Return the attention implementation of each part of a model's config; "" is the whole."""
    parts = {"": member.config, **{name: getattr(member.config, name, None) for name in member.config.sub_configs}}
    found = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items()}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def write_configs(member: PreTrainedModel, folder: Path) -> None:
    """Write what `rebuild` needs besides the weights; the folder is then one that transformers can load, too."""
    config = deepcopy(member.config)
    config.architectures = [type(member).__name__]
    config.dtype = member.dtype
    config.save_pretrained(folder)
    if isinstance(getattr(member, "generation_config", None), GenerationConfig):
        member.generation_config.to_json_file(folder / GENERATION)


def rebuild(class_name: str, folder: Path, attention: dict[str, str] | None, checkpoint: Tensors) -> PreTrainedModel:
    """Make a model from its config.

    Args:
        class_name: The name of a model class of transformers.
        folder: Where its config is.
        attention: What `attention_of` has returned.
        checkpoint: Its weights, so that transformers need not draw random ones.

    Raises:
        ValueError: If transformers has no such model.
    """
    found = getattr(transformers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"transformers {transformers.__version__} has no model class {class_name!r}")
    cls: Any = found
    config: Any = cls.config_class.from_pretrained(folder)
    if attention:
        config._attn_implementation = attention
    model: PreTrainedModel = cls.from_pretrained(None, config=config, state_dict=dict(checkpoint))
    model.config.name_or_path = model.name_or_path = str(folder)
    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def return_logits(model: Any) -> None:
    """Let a model's ``forward`` return the bare logits."""
    model.original_forward = model.forward
    model.forward = LogitsForward(model.forward)


def _plain_config(member: PreTrainedModel) -> Any:
    """Return the config as it will be read from its file."""
    config = type(member.config).from_dict(member.config.to_dict())
    config._attn_implementation = attention_of(member)
    return config


def _structure(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = {name: type(part) for name, part in model.named_modules(remove_duplicate=False)}
    return parts, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
