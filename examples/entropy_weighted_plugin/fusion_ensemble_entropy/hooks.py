"""What this package adds to fusion-ensemble-plugin."""

from __future__ import annotations

from fusion_ensemble_entropy.reducer import EntropyWeightedReducer
from fusion_ensemble_plugin.hookspecs import RegisterReducer, hookimpl


@hookimpl
def register_reducers(register: RegisterReducer) -> None:
    """Register the reducer under the name that users write."""
    register("entropy_weighted", EntropyWeightedReducer)
