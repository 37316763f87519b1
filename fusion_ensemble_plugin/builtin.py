"""This package's own reducers and executors, registered through the same hooks as anybody's."""

from __future__ import annotations

from fusion_ensemble_plugin.executor import SequentialExecutor, ThreadsExecutor
from fusion_ensemble_plugin.hookspecs import RegisterExecutor, RegisterReducer, hookimpl
from fusion_ensemble_plugin.reducer import MeanReducer


@hookimpl
def register_reducers(register: RegisterReducer) -> None:
    """Register the reducers of `fusion_ensemble_plugin.reducer`."""
    register("mean", MeanReducer)


@hookimpl
def register_executors(register: RegisterExecutor) -> None:
    """Register the executors of `fusion_ensemble_plugin.executor`."""
    register("sequential", SequentialExecutor)
    register("threads", ThreadsExecutor)
