"""The config of several models as one: read from the first, written to all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any


class SharedConfig:
    """What `ParallelEnsemble.config` and ``generation_config`` are.

    FusionBench's task pools write to a model's config (the reward pool sets ``config.pad_token_id``, for one), which
    must reach every member. Reading gives the first member's value; a part that is a config itself is shared in the
    same way. It passes for an instance of the first one's class, and a copy of it is a copy of the first.

    Args:
        configs: The members' configs.

    Examples:
        >>> from types import SimpleNamespace
        >>> configs = [SimpleNamespace(pad_token_id=None), SimpleNamespace(pad_token_id=None)]
        >>> SharedConfig(configs).pad_token_id = 7
        >>> configs[1].pad_token_id
        7
    """

    def __init__(self, configs: Sequence[Any]) -> None:
        vars(self)["_configs"] = tuple(configs)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._configs[0])

    def __getattr__(self, name: str) -> Any:
        if name == "_configs":  # while it is being unpickled
            raise AttributeError(name)
        value = getattr(self._configs[0], name)
        if hasattr(value, "to_dict") and not isinstance(value, type):
            return SharedConfig([getattr(config, name) for config in self._configs])
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        for config in self._configs:
            setattr(config, name, value)

    def __delattr__(self, name: str) -> None:
        for config in self._configs:
            delattr(config, name)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Write several values, as the configs of transformers do; returns what the first one does."""
        first, *_ = [config.update(*args, **kwargs) for config in self._configs]
        return first

    def __copy__(self) -> Any:
        return copy.copy(self._configs[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._configs[0], memo)

    def __reduce__(self) -> Any:
        return copy.copy, (self._configs[0],)

    def __eq__(self, other: object) -> bool:
        return bool(self._configs[0] == other)

    __hash__ = None  # type: ignore[assignment]  # as the configs of transformers

    def __repr__(self) -> str:
        return repr(self._configs[0])


def shared(models: Sequence[Any], name: str) -> Any:
    """Return an attribute of all models, written to all at once.

    Raises:
        AttributeError: If the first model has none.
    """
    first = getattr(models[0], name)
    found = [first, *(getattr(model, name) for model in models[1:] if getattr(model, name, None) is not None)]
    return first if len(found) == 1 or first is None else SharedConfig(found)
