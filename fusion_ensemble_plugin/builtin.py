"""This package's own reducers and executors, registered through the same hooks as anybody's."""

from __future__ import annotations

from fusion_ensemble_plugin.executor import SequentialExecutor, StackedExecutor, ThreadsExecutor
from fusion_ensemble_plugin.hookspecs import RegisterExecutor, RegisterReducer, hookimpl
from fusion_ensemble_plugin.reducer import MeanReducer, SumReducer
from fusion_ensemble_plugin.reducers.calibrated import CalibratedMeanReducer
from fusion_ensemble_plugin.reducers.order_statistics import MedianReducer, TrimmedMeanReducer
from fusion_ensemble_plugin.reducers.pointwise import MaxReducer, MinReducer
from fusion_ensemble_plugin.reducers.probability import LogProbabilityMeanReducer, ProbabilityMeanReducer
from fusion_ensemble_plugin.reducers.variance import VarianceReducer
from fusion_ensemble_plugin.reducers.voting import MajorityVoteReducer


@hookimpl
def register_reducers(register: RegisterReducer) -> None:
    """Register the reducers of `fusion_ensemble_plugin.reducer` and `fusion_ensemble_plugin.reducers`."""
    register("mean", MeanReducer)
    register("sum", SumReducer)
    register("max", MaxReducer)
    register("min", MinReducer)
    register("probability_mean", ProbabilityMeanReducer)
    register("log_probability_mean", LogProbabilityMeanReducer)
    register("calibrated_mean", CalibratedMeanReducer)
    register("majority_vote", MajorityVoteReducer)
    register("median", MedianReducer)
    register("trimmed_mean", TrimmedMeanReducer)
    register("variance", VarianceReducer)


@hookimpl
def register_executors(register: RegisterExecutor) -> None:
    """Register the executors of `fusion_ensemble_plugin.executor`."""
    register("sequential", SequentialExecutor)
    register("threads", ThreadsExecutor)
    register("stacked", StackedExecutor)
