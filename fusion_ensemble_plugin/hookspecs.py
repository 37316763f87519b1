"""What a package can add to this one: the whole contract.

A plugin is a module (or any object) with one or more of these functions, marked with `hookimpl` and announced by an
entry point in the group ``fusion_ensemble_plugin``. The package's own reducers and executors come through the same
hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pluggy

from fusion_ensemble_plugin.executor import Executor
from fusion_ensemble_plugin.reducer import Reducer

ENTRY_POINT_GROUP = "fusion_ensemble_plugin"

hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


class RegisterReducer(Protocol):
    """Call it with a name and what makes the reducer: ``factory(**options) -> Reducer``."""

    def __call__(self, name: str, factory: Callable[..., Reducer]) -> None: ...


class RegisterExecutor(Protocol):
    """Call it with a name and what makes the executor: ``factory(cores: Mapping[str, int | None]) -> Executor``."""

    def __call__(self, name: str, factory: Callable[[Mapping[str, int | None]], Executor]) -> None: ...


@hookspec
def register_reducers(register: RegisterReducer) -> Any:
    """Add reducers, each under a name of its own: ``register("entropy_weighted", EntropyWeightedReducer)``."""


@hookspec
def register_executors(register: RegisterExecutor) -> Any:
    """Add executors, each under a name of its own: ``register("pool", PoolExecutor)``."""
