"""What methods have in common that choose how to combine the members by what a task pool measures."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fusion_bench.mixins.serialization import auto_register_config
from lightning_utilities.core.rank_zero import rank_zero_only

from fusion_ensemble_plugin.algorithms import plain
from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.memory import parse_bytes
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.scores import takes_scores
from fusion_ensemble_plugin.selection.batches import Budget, batches_kept
from fusion_ensemble_plugin.selection.evaluation import evaluations
from fusion_ensemble_plugin.selection.objective import Objective
from fusion_ensemble_plugin.selection.outputs import outputs_kept
from fusion_ensemble_plugin.selection.record import Selection
from fusion_ensemble_plugin.selection.taskpool import check_taskpool, make_taskpool, same_data
from fusion_ensemble_plugin.variants import ClassScoreEnsembleAlgorithm

log = logging.getLogger(__name__)

Score = Callable[..., float]
"""How good the ensemble is if it is combined so: takes what `ParallelEnsemble.recombine` takes; more is better."""


class Choice(NamedTuple):
    """What a method chose.

    Attributes:
        combined: What `ParallelEnsemble.recombine` is given.
        before: The score without the choice.
        after: The score with it.
        alone: The scores of the members alone; nothing if they were not tried.
        options: What else was chosen, for the reader.
    """

    combined: dict[str, Any]
    before: float
    after: float
    alone: Sequence[float] = ()
    options: Mapping[str, Any] = {}


@auto_register_config
class SelectingEnsembleAlgorithm(ClassScoreEnsembleAlgorithm):
    """An ensemble that is combined as a task pool's metric likes it best.

    The members are loaded once, evaluated in many combinations, and the best of these is what `run` returns. A subclass
    says how it searches.

    Args:
        selection_taskpool: The task pool to choose by: its config, or in Python the pool itself.
        metric: Name of a metric in its report, of which the mean over the tasks counts; None for the method's own.
        tasks: Names of the tasks that count; None for all that have the metric.
        direction: "max", "min", or "auto": less is better if the metric's name says so (loss, error, perplexity, ...).
        allow_same_data: Choose even on the data that are reported afterwards, and say so in the selection's report.
        keep_bytes: Memory, such as "4GiB", half of it for the task pool's batches, which are then read once, half for
            the members' outputs, so that members run once; 0 for none.
        **kwargs: The options of `SimpleEnsembleAlgorithm`, and ``clip_model``.

    Attributes:
        selection: What the latest `run` chose.
    """

    default_metric = "accuracy"

    selection_taskpool: Any
    metric: Any
    tasks: Any
    direction: Any
    allow_same_data: bool
    keep_bytes: int | str
    selection: Selection

    def __init__(
        self,
        selection_taskpool: Any = None,
        metric: str | None = None,
        tasks: Sequence[str] | None = None,
        direction: str = "auto",
        allow_same_data: bool = False,
        keep_bytes: int | str = "4GiB",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def run(self, modelpool: Any) -> ParallelEnsemble:
        """Load the members, choose how to combine them, and build the ensemble.

        Args:
            modelpool: As in `SimpleEnsembleAlgorithm`.

        Raises:
            ValueError: If an option is wrong, before any model is loaded; or if the task pool's report does not have
                the metric, which only the first report tells.
        """
        ensemble = super().run(modelpool)
        objective = self._objective()
        taskpool = make_taskpool(self.selection_taskpool, self._program)
        at_most = self._at_most(len(ensemble.names))
        half = parse_bytes(self.keep_bytes) // 2
        with (
            batches_kept(taskpool, Budget(half)),
            outputs_kept(ensemble, Budget(half)),
            evaluations(ensemble, taskpool, objective, at_most) as evaluation,
        ):
            choice = self._choose(evaluation.score, ensemble.names)
        ensemble.recombine(**choice.combined)
        self.selection = self._recorded(choice, ensemble, objective, evaluation.count)
        self._tell()
        return ensemble

    @abstractmethod
    def _choose(self, score: Score, names: Sequence[str]) -> Choice:
        """Search for the combination that scores best."""

    @abstractmethod
    def _at_most(self, members: int) -> int:
        """Return how many combinations the search tries at most."""

    def _check_search(self) -> list[str]:
        """Return what is wrong with the search's own options."""
        return []

    def _objective(self) -> Objective:
        return Objective(self.metric or self.default_metric, plain(self.tasks), self.direction)

    def _check_pool(self, modelpool: Any) -> None:
        problems = self._check_search()
        if self.member_parallel:
            problems.append(
                "member_parallel: members that are spread over ranks cannot be chosen among; leave it false"
            )
        checks: list[Callable[[], Any]] = [
            self._objective,
            lambda: parse_bytes(self.keep_bytes),
            lambda: check_taskpool(self.selection_taskpool, plain(self.tasks)),
            self._check_data,
            lambda: self._check_scores(modelpool),
        ]
        for check in checks:
            try:
                check()
            except (ValueError, TypeError) as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))

    def _check_data(self) -> None:
        """Refuse to choose on the data that are reported, unless that is asked for."""
        same = same_data(self.selection_taskpool, self._program)
        if same and not self.allow_same_data:
            raise ValueError(
                f"selection_taskpool has the data that are reported afterwards ({', '.join(same)}), which makes the "
                "report too good; choose on other data, or set method.allow_same_data=true"
            )

    def _check_scores(self, modelpool: Any) -> None:
        if self._of_scores():
            super()._check_pool(modelpool)

    def _of_scores(self) -> bool:
        """Say whether the reducer combines class scores, which a CLIP pool's members don't return by themselves."""
        return takes_scores(make_reducer(self._reducer()))

    def _build(self, modelpool: Any, models: Any, placement: Any, **options: Any) -> ParallelEnsemble:
        if self._of_scores():
            return super()._build(modelpool, models, placement, **options)
        return self.ensemble_class(models, placement, **options)

    def _recorded(self, choice: Choice, ensemble: ParallelEnsemble, objective: Objective, count: int) -> Selection:
        sign = 1 if objective.more_is_better else -1
        total = sum(ensemble.member_weights)
        return Selection(
            method=type(self).__name__,
            metric=objective.metric,
            tasks=None if objective.tasks is None else list(objective.tasks),
            before=sign * choice.before,
            after=sign * choice.after,
            evaluations=count,
            weights={name: weight / total for name, weight in zip(ensemble.names, ensemble.member_weights)},
            alone={name: sign * score for name, score in zip(ensemble.names, choice.alone)},
            options=dict(choice.options),
            same_data=same_data(self.selection_taskpool, self._program),
        )

    def _tell(self) -> None:
        """Show the selection, and write it beside the host's report."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        log.info("%s", "\n".join(self.selection.lines()))
        if self.selection.warning:
            log.warning("%s", self.selection.warning)
        self.selection.write(getattr(self._program, "log_dir", None))
