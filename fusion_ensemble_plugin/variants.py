"""The usual ways to combine predictions: each an ensemble with its reducer, and the FusionBench method that builds it.

A variant is a class attribute or one overridden method. All options are `SimpleEnsembleAlgorithm`'s; a reducer's own
are in the option ``reducer``, such as ``reducer={"name": "trimmed_mean", "fraction": 0.1}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench.mixins.serialization import auto_register_config

from fusion_ensemble_plugin.algorithms import SimpleEnsembleAlgorithm, plain, problem_of
from fusion_ensemble_plugin.clip_head import check_clip_pool, clip_head
from fusion_ensemble_plugin.clip_logits import ClipLogitEnsemble, check_logit_reducer, is_linear
from fusion_ensemble_plugin.ensemble import ParallelEnsemble, overrides_aggregation
from fusion_ensemble_plugin.plugins import make_reducer


class MaxModelPredictor(ParallelEnsemble):
    """The element-wise maximum of the members' outputs, as FusionBench's class of this name."""

    default_reducer = "max"


class MedianEnsemble(ParallelEnsemble):
    """The element-wise median of the members' outputs."""

    default_reducer = "median"


class TrimmedMeanEnsemble(ParallelEnsemble):
    """The element-wise mean without the members' largest and smallest values."""

    default_reducer = "trimmed_mean"


class ProbabilityEnsemble(ParallelEnsemble):
    """The mean of the members' class probabilities, as log-probabilities."""

    default_reducer = "probability_mean"


class LogOpinionPool(ParallelEnsemble):
    """The normalised geometric mean of the members' class probabilities, as log-probabilities."""

    default_reducer = "log_probability_mean"


class MajorityVote(ParallelEnsemble):
    """The members' votes for a class each, as log-frequencies."""

    default_reducer = "majority_vote"


@auto_register_config
class WeightedEnsembleAlgorithm(SimpleEnsembleAlgorithm):
    """The weighted mean of the members' outputs, or their weighted sum.

    Args:
        normalize: Divide by the sum of the weights. If false, the output is the plain sum_i w_i f_i(x), and weights may
            be negative.
        **kwargs: The options of `SimpleEnsembleAlgorithm`, ``weights`` above all.
    """

    normalize: bool

    def __init__(self, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _reducer(self) -> Any:
        """Take the sum in the place of the mean if weights are not normalized.

        Raises:
            ValueError: If another reducer than the mean is not to be normalized.
        """
        reducer = super()._reducer()
        if self.normalize:
            return reducer
        if reducer not in ("mean", "sum"):
            raise ValueError(f"normalize=False goes with the reducer 'mean', not with {reducer!r}")
        return "sum"


class MaxModelPredictorAlgorithm(SimpleEnsembleAlgorithm):
    """The element-wise maximum of the members' outputs, as FusionBench's method of this name."""

    ensemble_class = MaxModelPredictor


class MedianEnsembleAlgorithm(SimpleEnsembleAlgorithm):
    """The element-wise median of the members' outputs."""

    ensemble_class = MedianEnsemble


class TrimmedMeanEnsembleAlgorithm(SimpleEnsembleAlgorithm):
    """The element-wise mean without the members' largest and smallest values."""

    ensemble_class = TrimmedMeanEnsemble


@auto_register_config
class ClipLogitEnsembleAlgorithm(SimpleEnsembleAlgorithm):
    """The mean of the members' *logits*, in a CLIP task pool, which else averages pooled features.

    See `fusion_ensemble_plugin.clip_logits`. Any other reducer of logits works too.

    Args:
        clip_model: Path or hub name of the task pool's CLIP model, or a mapping with ``_target_``; None for the model
            pool's ``_pretrained_``.
        **kwargs: The options of `SimpleEnsembleAlgorithm`.
    """

    ensemble_class: type[ParallelEnsemble] = ClipLogitEnsemble
    clip_model: Any

    def __init__(self, clip_model: str | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _check_pool(self, modelpool: Any) -> None:
        text = self._needs_text()
        checks = [
            lambda: check_logit_reducer(make_reducer(self._reducer())),
            lambda: check_clip_pool(modelpool, plain(self.clip_model), text),
        ]
        if problems := [problem for check in checks if (problem := problem_of(check))]:
            raise ValueError("\n".join(problems))

    def _build(self, modelpool: Any, models: Any, placement: Any, **options: Any) -> ParallelEnsemble:
        head = clip_head(modelpool, plain(self.clip_model), self._needs_text())
        towers = self.ensemble_class if issubclass(self.ensemble_class, ClipLogitEnsemble) else ClipLogitEnsemble
        return towers(models, placement, head=head, **options)

    def _needs_text(self) -> bool:
        """Say whether logits are combined, and not embeddings."""
        return overrides_aggregation(self.ensemble_class) or not is_linear(make_reducer(self._reducer()))


class ClassScoreEnsembleAlgorithm(ClipLogitEnsembleAlgorithm):
    """A variant whose reducer combines class scores: members' logits, also in a CLIP task pool.

    Members of a CLIP pool are vision towers, whose outputs are features; so there, and wherever a ``clip_model`` is
    named, it builds a `ClipLogitEnsemble`. Of any other pool it builds the `ensemble_class`.
    """

    ensemble_class = ParallelEnsemble

    def _check_pool(self, modelpool: Any) -> None:
        if not self._of_towers(modelpool):
            return
        if overrides_aggregation(self.ensemble_class) and not issubclass(self.ensemble_class, ClipLogitEnsemble):
            raise ValueError(
                f"{self.ensemble_class.__name__} has an _aggregate_tensors of its own, which would get a CLIP tower's "
                "features; derive it from ClipLogitEnsemble, which gives it logits"
            )
        super()._check_pool(modelpool)

    def _build(self, modelpool: Any, models: Any, placement: Any, **options: Any) -> ParallelEnsemble:
        if self._of_towers(modelpool):
            return super()._build(modelpool, models, placement, **options)
        return self.ensemble_class(models, placement, **options)

    def _of_towers(self, modelpool: Any) -> bool:
        return self.clip_model is not None or hasattr(modelpool, "load_clip_model")


class ProbabilityEnsembleAlgorithm(ClassScoreEnsembleAlgorithm):
    """The mean of the members' class probabilities, as log-probabilities."""

    ensemble_class = ProbabilityEnsemble


class LogOpinionPoolAlgorithm(ClassScoreEnsembleAlgorithm):
    """The normalised geometric mean of the members' class probabilities, as log-probabilities."""

    ensemble_class = LogOpinionPool


class MajorityVoteAlgorithm(ClassScoreEnsembleAlgorithm):
    """The members' votes for a class each, as log-frequencies."""

    ensemble_class = MajorityVote
