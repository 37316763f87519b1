"""Ensemble decoding: at each step, the members' next-token distributions become one.

Transformers' own decoding loop runs on top: `generator.EnsembleGenerator` takes the place of the model, `caches` holds
one key-value cache a member, `scores` combines the members' scores, and `checks` says which members can decode
together.
"""

from __future__ import annotations

from fusion_ensemble_plugin.generation.checks import can_generate
from fusion_ensemble_plugin.generation.decode import generate

__all__ = ["can_generate", "generate"]
