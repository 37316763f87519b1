"""Parallel ensembles of models for FusionBench.

The names below are loaded on first use, so that importing the package (which Hydra does in every process that composes
one of its configs) costs neither torch nor FusionBench.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_ensemble_plugin.algorithms import SimpleEnsembleAlgorithm
    from fusion_ensemble_plugin.clip_head import ClipHead
    from fusion_ensemble_plugin.clip_logits import ClipLogitEnsemble
    from fusion_ensemble_plugin.ensemble import ParallelEnsemble
    from fusion_ensemble_plugin.placement import Placement
    from fusion_ensemble_plugin.reducer import Reducer
    from fusion_ensemble_plugin.reducers.class_scores import ClassScoreReducer
    from fusion_ensemble_plugin.report.method import EnsembleReportAlgorithm
    from fusion_ensemble_plugin.saved_pool import SavedEnsemblePool
    from fusion_ensemble_plugin.selection.calibration import CalibratedEnsembleAlgorithm
    from fusion_ensemble_plugin.selection.weights import GreedyEnsembleAlgorithm, LearnedWeightsAlgorithm
    from fusion_ensemble_plugin.variants import (
        ClipLogitEnsembleAlgorithm,
        LogOpinionPool,
        LogOpinionPoolAlgorithm,
        MajorityVote,
        MajorityVoteAlgorithm,
        MaxModelPredictor,
        MaxModelPredictorAlgorithm,
        MedianEnsemble,
        MedianEnsembleAlgorithm,
        ProbabilityEnsemble,
        ProbabilityEnsembleAlgorithm,
        TrimmedMeanEnsemble,
        TrimmedMeanEnsembleAlgorithm,
        WeightedEnsembleAlgorithm,
    )

__version__ = "0.1.0"

__all__ = [
    "CalibratedEnsembleAlgorithm",
    "ClassScoreReducer",
    "ClipHead",
    "ClipLogitEnsemble",
    "ClipLogitEnsembleAlgorithm",
    "EnsembleReportAlgorithm",
    "GreedyEnsembleAlgorithm",
    "LearnedWeightsAlgorithm",
    "LogOpinionPool",
    "LogOpinionPoolAlgorithm",
    "MajorityVote",
    "MajorityVoteAlgorithm",
    "MaxModelPredictor",
    "MaxModelPredictorAlgorithm",
    "MedianEnsemble",
    "MedianEnsembleAlgorithm",
    "ParallelEnsemble",
    "Placement",
    "ProbabilityEnsemble",
    "ProbabilityEnsembleAlgorithm",
    "Reducer",
    "SavedEnsemblePool",
    "SimpleEnsembleAlgorithm",
    "TrimmedMeanEnsemble",
    "TrimmedMeanEnsembleAlgorithm",
    "WeightedEnsembleAlgorithm",
    "__version__",
]

_MODULE_OF = {
    "SimpleEnsembleAlgorithm": "algorithms",
    "ClipHead": "clip_head",
    "ClipLogitEnsemble": "clip_logits",
    "ParallelEnsemble": "ensemble",
    "Placement": "placement",
    "Reducer": "reducer",
    "ClassScoreReducer": "reducers.class_scores",
    "SavedEnsemblePool": "saved_pool",
    "EnsembleReportAlgorithm": "report.method",
    "CalibratedEnsembleAlgorithm": "selection.calibration",
    "GreedyEnsembleAlgorithm": "selection.weights",
    "LearnedWeightsAlgorithm": "selection.weights",
    "ClipLogitEnsembleAlgorithm": "variants",
    "LogOpinionPool": "variants",
    "LogOpinionPoolAlgorithm": "variants",
    "MajorityVote": "variants",
    "MajorityVoteAlgorithm": "variants",
    "MaxModelPredictor": "variants",
    "MaxModelPredictorAlgorithm": "variants",
    "MedianEnsemble": "variants",
    "MedianEnsembleAlgorithm": "variants",
    "ProbabilityEnsemble": "variants",
    "ProbabilityEnsembleAlgorithm": "variants",
    "TrimmedMeanEnsemble": "variants",
    "TrimmedMeanEnsembleAlgorithm": "variants",
    "WeightedEnsembleAlgorithm": "variants",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
