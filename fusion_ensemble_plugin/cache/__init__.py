"""Members' outputs, computed once: what a member has answered to an input is kept, in memory and in files."""

from __future__ import annotations

from fusion_ensemble_plugin.cache.outputs import CACHES, OutputCache, make_cache
from fusion_ensemble_plugin.cache.recall import Recall

__all__ = ["CACHES", "OutputCache", "Recall", "make_cache"]
