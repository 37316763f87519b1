"""An ensemble's class and its reducer, as names in a manifest and back.

A manifest can name only what is installed and known already: a class that is announced as a FusionBench model or was
imported before, a reducer that is registered. What else it might name is refused rather than imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any

import fusion_ensemble_plugin
from fusion_ensemble_plugin.plugins import make_reducer, registry

MODELS = "fusion_bench.model"
"""The group of entry points under which packages announce model classes for FusionBench."""


def class_name(cls: type) -> str:
    """Return the name under which an ensemble's class is saved: as it is announced, or else where it is defined."""
    announced = (name for name, found in _announced(cls.__qualname__) if found is cls)
    return next(announced, f"{cls.__module__}:{cls.__qualname__}")


def find_class(name: str, asked: type) -> Any:
    """Return the class that was saved.

    Args:
        name: What `class_name` has returned.
        asked: The class whose ``from_pretrained`` was called: it, or one that comes from it, is returned.

    Raises:
        ValueError: If there is no such class, or if it is another one than was asked for.
    """
    qualname = name.rpartition(":")[2]
    found = [cls for known, cls in _announced(qualname) if known == name]
    found += [cls for cls in _family(asked) if f"{cls.__module__}:{cls.__qualname__}" == name]
    if not found:
        raise ValueError(
            f"what was saved is a {name}, which no installed package announces: import it before, or call its own "
            "from_pretrained"
        )
    if not issubclass(found[0], asked):
        raise ValueError(f"what was saved is a {qualname}, not a {asked.__qualname__}: load it as what it is")
    return found[0]


def missing_arguments(cls: type, given: Mapping[str, Any]) -> list[str]:
    """Return the keyword arguments without a default that a class needs and has not been given."""
    parameters = signature(cls).parameters.values()
    needed = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    return [name for name in needed if name not in given]


def reducer_name(spec: Any) -> Any:
    """Return how a reducer is written: its name, or ``name`` and options; None if it has no registered name.

    Args:
        spec: A reducer in any of the ways in which an ensemble takes it.

    Examples:
        >>> from fusion_ensemble_plugin.reducer import MeanReducer
        >>> reducer_name(MeanReducer())
        'mean'
    """
    if isinstance(spec, str) or (isinstance(spec, Mapping) and _is_plain(spec) and "_target_" not in spec):
        return dict(spec) if isinstance(spec, Mapping) else spec
    reducer = make_reducer(spec)
    for name, (factory, _) in registry().reducers.items():
        options = _options(factory, reducer) if factory is type(reducer) else None
        if options is not None and vars(factory(**options)) == vars(reducer):
            return {"name": name, **options} if options else name
    return None


def _options(factory: Any, reducer: Any) -> dict[str, Any] | None:
    """Return the arguments that made a reducer, if it keeps them under their names and they are plain data."""
    names = list(signature(factory).parameters)
    options = {name: getattr(reducer, name) for name in names if hasattr(reducer, name)}
    return options if len(options) == len(names) and _is_plain(options) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _announced(qualname: str) -> Iterator[tuple[str, Any]]:
    """Yield the classes of a name that this package and others announce, and how they are called."""
    if qualname in fusion_ensemble_plugin.__all__:
        yield f"{fusion_ensemble_plugin.__name__}:{qualname}", getattr(fusion_ensemble_plugin, qualname)
    for entry in entry_points(group=MODELS):
        if entry.value.rpartition(":")[2] == qualname:
            yield entry.value, entry.load()


def _family(cls: type) -> Iterator[type]:
    yield cls
    derived: list[type] = cls.__subclasses__()
    for one in derived:
        yield from _family(one)
