"""Which fields of a member's output are kept: all but key-value caches, or only those that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from fusion_ensemble_plugin.tree import flatten, mapping_builder

CACHE_FIELDS = frozenset({"past_key_values", "cache_params", "mems"})
"""Output fields in which Hugging Face models return caches of past tokens. An average of caches means nothing."""


def kept_fields(output: Any, output_keys: Sequence[Hashable] | None = None) -> Any:
    """Drop caches from a member's output, and all fields but ``output_keys`` if given.

    Args:
        output: What a member returned.
        output_keys: Names of a mapping's, ``ModelOutput``'s, dataclass's or named tuple's fields, or positions in a
            list or tuple.

    Returns:
        The output without those fields. Mappings leave them out; where a field has a fixed place, None stands there.

    Raises:
        ValueError: If the output lacks one of the keys; says which fields there are.

    Examples:
        >>> kept_fields({"logits": 1, "hidden": 2, "past_key_values": 3})
        {'logits': 1, 'hidden': 2}
        >>> kept_fields({"logits": 1, "hidden": 2}, ["logits"])
        {'logits': 1}
    """
    if isinstance(output, _CACHES):
        return None
    fields = _fields(output)
    caches = [key for key, value in fields.items() if key in CACHE_FIELDS or isinstance(value, _CACHES)]
    if caches:
        output = _without(output, caches)
        fields = _fields(output)
    if output_keys is None:
        return output
    missing = [key for key in output_keys if key not in fields]
    if missing:
        there = f"its fields are {list(fields)}" if fields else f"it is a {type(output).__name__} without fields"
        raise ValueError(f"output_keys {missing} are not in the output: {there}")
    return _selected(output, list(fields), output_keys)


_CACHES = (Cache, EncoderDecoderCache)


def checked_keys(output_keys: Sequence[Hashable] | None) -> tuple[Hashable, ...] | None:
    """Return the keys of the fields to keep, or None for all.

    Raises:
        ValueError: If one key is given and not a list of keys; of a name, each letter would be taken for one.
    """
    if output_keys is not None and (isinstance(output_keys, str) or not isinstance(output_keys, Sequence)):
        raise ValueError(f"output_keys={output_keys!r} is no list of fields, such as [{output_keys}]")
    return None if output_keys is None else tuple(output_keys)


def _selected(output: Any, keys: Sequence[Hashable], output_keys: Sequence[Hashable]) -> Any:
    """Keep the class of a ``ModelOutput`` only if the kept fields keep their positions, else name them in a plain one.

    A ``ModelOutput`` is also read by position, None fields not counted: without its ``last_hidden_state``, position 1
    of a ``BaseModelOutputWithPooling`` is no longer the pooled output, and FusionBench's CLIP classifier reads position
    1 of that class.
    """
    kept = [key for key in keys if key in output_keys]
    if isinstance(output, ModelOutput) and keys[: len(kept)] != kept:
        plain = ModelOutput()
        for key in kept:
            plain[key] = output[key]
        return plain
    return _without(output, [key for key in keys if key not in output_keys])


def _fields(output: Any) -> dict[Hashable, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output))
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {}


def _without(output: Any, dropped: Collection[Hashable]) -> Any:
    fields = _fields(output)
    if isinstance(output, Mapping):
        kept = [key for key in fields if key not in dropped]
        return mapping_builder(output, kept)([fields[key] for key in kept])
    return flatten(output)[1].build([None if key in dropped else value for key, value in fields.items()])
