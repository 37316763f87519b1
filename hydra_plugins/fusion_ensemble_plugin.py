"""Puts our configs before FusionBench's own. Hydra imports this file in every Hydra app, so it stays tiny."""

from __future__ import annotations

import os
import sys
import warnings

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_PRIMARY_CONFIG = "fabric_model_fusion.yaml"  # marks a folder as a FusionBench config tree


class FusionEnsembleSearchPath(SearchPathPlugin):
    """Acts only in a process that has FusionBench loaded, and not at all under ``FUSION_ENSEMBLE_PLUGIN=off``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put our folder before FusionBench's tree and make sure that tree is on the path."""
        if "fusion_bench" not in sys.modules or os.environ.get("FUSION_ENSEMBLE_PLUGIN", "").lower() == "off":
            return
        try:
            _extend(search_path)
        except Exception as error:  # Hydra would die of it, whatever app is running
            warnings.warn(f"fusion-ensemble-plugin could not extend Hydra's search path: {error!r}", stacklevel=2)


def _extend(search_path: ConfigSearchPath) -> None:
    main = next((element.path or "" for element in search_path.get_path() if element.provider == "main"), "")
    ours = ("fusion_ensemble_plugin", "pkg://fusion_ensemble_plugin.config")
    # A user's own ./config (one that is no copy of FusionBench's tree) is nearer than a plugin: it goes first.
    if main.startswith("pkg://") or os.path.isfile(os.path.join(main, _PRIMARY_CONFIG)):
        search_path.prepend(*ours)
    else:
        search_path.append(*ours)
    root = os.path.dirname(next(iter(sys.modules["fusion_bench"].__path__)))
    for name in ("fusion_bench_config", "config"):  # the wheel's layout, a source checkout's
        if os.path.isfile(os.path.join(root, name, _PRIMARY_CONFIG)):
            search_path.append("fusion_bench", os.path.join(root, name))
            return
