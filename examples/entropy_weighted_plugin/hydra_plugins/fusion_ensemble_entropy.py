"""Makes this package's config folder known to Hydra, in FusionBench's processes only.

Keep it tiny: every Hydra app imports it. There must be no ``__init__.py`` beside this file: ``hydra_plugins`` is a
namespace that packages share.
"""

from __future__ import annotations

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class FusionEnsembleEntropySearchPath(SearchPathPlugin):
    """Appends the folder: it adds a method and replaces none."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder."""
        if "fusion_bench" in sys.modules:
            search_path.append("fusion_ensemble_entropy", "pkg://fusion_ensemble_entropy.config")
