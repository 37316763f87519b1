"""``method=ensemble/ensemble_report``: is the ensemble worth it, which members matter, can it be trusted."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.mixins.serialization import auto_register_config
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from torch import nn

from fusion_ensemble_plugin.algorithms import plain
from fusion_ensemble_plugin.cache.content import Content
from fusion_ensemble_plugin.cache.outputs import user_folder
from fusion_ensemble_plugin.clip_head import check_clip_pool, clip_head
from fusion_ensemble_plugin.clip_logits import ClipLogitEnsemble, check_logit_reducer
from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.memory import parse_bytes
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducer import weight_rule
from fusion_ensemble_plugin.report.compare import METRICS, Comparison
from fusion_ensemble_plugin.report.entries import Entry, entries, variant_problems
from fusion_ensemble_plugin.report.progress import Finished
from fusion_ensemble_plugin.report.taskpool import ReportingTaskPool
from fusion_ensemble_plugin.report.write import table, write_report
from fusion_ensemble_plugin.scores import takes_scores
from fusion_ensemble_plugin.variants import ClassScoreEnsembleAlgorithm

log = logging.getLogger(__name__)


@auto_register_config
class EnsembleReportAlgorithm(ClassScoreEnsembleAlgorithm):
    """Evaluates members, ensemble, variants, ensembles without a member, and the weight average, and compares them.

    `run` returns all these models by name, which FusionBench's program then evaluates through the configured task pool;
    members compute each batch once. After the last one, the report is written beside the program's own.

    Args:
        variants: More ways to combine all members: a list of reducers' names, or a mapping of names to ``reducer``,
            ``weights`` and ``logits`` (true: combine CLIP towers by their logits).
        subsets: How many ensembles of each size between 2 and all but two members.
        metrics: Metrics of class probabilities; None for all.
        weight_average: Whether to evaluate FusionBench's average of the members' weights too.
        plots: Whether to draw pictures.
        seed: Of drawn subsets and of bootstrap intervals.
        resume: Keep what is done until the report is written, so that the same command goes on after an interruption.
        batch_bytes: Memory for the task pool's batches, which are then read once, such as "2GiB".
        **kwargs: The options of `SimpleEnsembleAlgorithm`, and ``clip_model``; ``cache`` is "memory" if nobody says
            otherwise.

    Attributes:
        report: The latest report as plain data.
    """

    variants: Any
    subsets: int
    metrics: Any
    weight_average: bool
    plots: bool
    seed: int
    resume: bool
    batch_bytes: Any
    executor: Any
    report: dict[str, Any]

    def __init__(
        self,
        variants: Sequence[str] | Mapping[str, Any] | None = None,
        subsets: int = 3,
        metrics: Sequence[str] | None = None,
        weight_average: bool = True,
        plots: bool = True,
        seed: int = 0,
        resume: bool = True,
        batch_bytes: int | str = "2GiB",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"cache": "memory", **kwargs})

    def run(self, modelpool: Any) -> dict[str, Any]:  # type: ignore[override]
        """Load the members and return the models of the report by name; what is done already, as its report.

        Args:
            modelpool: As in `SimpleEnsembleAlgorithm`.

        Raises:
            ValueError: If an option is wrong, or there is no task pool, before any model is loaded.
        """
        program: Any = self._program
        _check_program(program)
        pool, models = self._prepared(modelpool, program.taskpool, _report_folder(program), program)
        program.taskpool = pool
        return models

    def evaluate(self, modelpool: Any, taskpool: Any, folder: str | Path) -> dict[str, Any]:
        """Make the report in Python, without FusionBench's program.

        Args:
            modelpool: As in `SimpleEnsembleAlgorithm`.
            taskpool: Any FusionBench task pool.
            folder: Where the report is written.

        Returns:
            The report as plain data.
        """
        pool, models = self._prepared(modelpool, taskpool, Path(folder), None)
        for model in models.values():
            if isinstance(model, nn.Module):
                pool.evaluate(model)
        return self.report

    def _prepared(self, modelpool: Any, taskpool: Any, folder: Path, program: Any) -> tuple[Any, dict[str, Any]]:
        ensemble = super().run(modelpool).eval()
        skipped: dict[str, str] = {}
        plan = self._plan(ensemble, modelpool, skipped)
        finished = Finished(self._resume_folder(ensemble, plan, program) if self.resume else None)
        models = {name: finished[name].report if name in finished else self._made(name, plan, skipped) for name in plan}
        plan = {name: entry for name, entry in plan.items() if name not in skipped}
        models = {name: models[name] for name in plan}
        if len(ensemble.names) == 1:
            log.warning("the pool has one member: the report is trivial")
        complete = partial(self._complete, ensemble, plan, finished, skipped, folder, program)
        left = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
        if len(left) < len(models):
            log.info("%d of %d models were evaluated before the interruption", len(models) - len(left), len(models))
        if not left:
            complete()
        return ReportingTaskPool(taskpool, left, finished, parse_bytes(self.batch_bytes), complete), models

    def _plan(self, ensemble: ParallelEnsemble, modelpool: Any, skipped: dict[str, str]) -> dict[str, Entry]:
        variants = {name: self._variant(ensemble, modelpool, spec) for name, spec in self._variants().items()}
        average = partial(_weight_average, ensemble) if self.weight_average else None
        return entries(ensemble, variants, average, self.subsets, self.seed)

    def _made(self, name: str, plan: Mapping[str, Entry], skipped: dict[str, str]) -> nn.Module | None:
        """Make a model; one that can't be made is left out, and the report says why."""
        try:
            return plan[name].make().eval()
        except Exception as error:
            if plan[name].kind not in ("weight_average", "without", "subset"):
                raise
            skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("%s is left out of the report: %s", name, skipped[name])
            return None

    def _variants(self) -> dict[str, Any]:
        given = plain(self.variants) or {}
        return dict(given) if isinstance(given, Mapping) else {str(name): {"reducer": name} for name in given}

    def _variant(
        self, ensemble: ParallelEnsemble, modelpool: Any, spec: Mapping[str, Any]
    ) -> Callable[[], ParallelEnsemble]:
        every = range(len(ensemble.names))
        options = {key: spec[key] for key in ("reducer", "weights") if spec.get(key) is not None}
        if "weights" not in options and weight_rule(make_reducer(spec.get("reducer") or "mean")) == "equal":
            options["weights"] = [float(weight != 0) for weight in ensemble.member_weights]
        if not self._by_logits(spec, modelpool) or isinstance(ensemble, ClipLogitEnsemble):
            return lambda: ensemble.subset(list(every), **options)
        return partial(self._towers, ensemble, modelpool, options)

    def _towers(self, ensemble: ParallelEnsemble, modelpool: Any, options: dict[str, Any]) -> ParallelEnsemble:
        """Return an ensemble of the same towers, in the same places and with the same cache, that combines logits."""
        towers = ClipLogitEnsemble(
            list(ensemble.model_list),
            ensemble.placement,
            head=clip_head(modelpool, plain(self.clip_model), text=True),
            names=ensemble.names,
            executor=self.executor,
            output_keys=ensemble.output_keys,
            output_device=ensemble.output_device,
            autocast=ensemble.autocast,
            offload=self.offload,
            cache=ensemble.cache,
            **{"reducer": "mean", "weights": ensemble.member_weights, **options},
        )
        return towers

    def _by_logits(self, spec: Mapping[str, Any], modelpool: Any) -> bool:
        scores = spec.get("reducer") is not None and takes_scores(make_reducer(spec["reducer"]))
        return self._of_towers(modelpool) and (bool(spec.get("logits")) or scores)

    def _build(self, modelpool: Any, models: Any, placement: Any, **options: Any) -> ParallelEnsemble:
        if self._of_towers(modelpool) and options["output_keys"] is None:
            options["output_keys"] = ["pooler_output"]  # all that a CLIP task pool looks at
        if takes_scores(make_reducer(self._reducer())):
            return super()._build(modelpool, models, placement, **options)
        return self.ensemble_class(models, placement, **options)

    def _check_pool(self, modelpool: Any) -> None:
        problems = [f"metrics: there is no {m!r}; there are {', '.join(METRICS)}" for m in self._metrics(known=False)]
        if self.member_parallel:
            problems.append("member_parallel: a report needs all members in one process; leave it false")
        if not (isinstance(self.subsets, int) and self.subsets >= 0):
            problems.append(f"subsets={self.subsets!r}: needed is a number of ensembles a size, 0 or more")
        checks: list[Callable[[], Any]] = [
            lambda: parse_bytes(self.batch_bytes),
            lambda: self._check_variants(modelpool),
            lambda: super(EnsembleReportAlgorithm, self)._check_pool(modelpool) if self._of_scores() else None,
        ]
        for check in checks:
            try:
                check()
            except (ValueError, TypeError) as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))

    def _check_variants(self, modelpool: Any) -> None:
        def check(spec: Mapping[str, Any]) -> None:
            made = make_reducer(spec.get("reducer") or "mean")
            if self._by_logits(spec, modelpool):
                check_logit_reducer(made)
                check_clip_pool(modelpool, plain(self.clip_model), text=True)

        if problems := variant_problems(self._variants(), check):
            raise ValueError("\n".join(problems))

    def _of_scores(self) -> bool:
        return takes_scores(make_reducer(self._reducer()))

    def _metrics(self, known: bool = True) -> list[str]:
        given = plain(self.metrics)
        asked = METRICS if given is None else [given] if isinstance(given, str) else list(given)
        return [metric for metric in asked if (metric in METRICS) == known]

    def _resume_folder(self, ensemble: ParallelEnsemble, plan: Mapping[str, Entry], program: Any) -> Path:
        """Return the folder that belongs to this very report: these weights, this task pool, these options."""
        content = Content().feed(list(plan)).feed(dict(plain(self.config)))
        content.feed([ensemble.names, list(map(float, ensemble.member_weights))])
        for member in ensemble.model_list:
            content.feed(member.state_dict())
        for name in ("_taskpool", "_modelpool", "fast_dev_run", "seed"):
            content.feed(plain(getattr(program, name, None)))
        return user_folder() / "reports" / content.hexdigest()

    def _complete(
        self,
        ensemble: ParallelEnsemble,
        plan: Mapping[str, Entry],
        finished: Finished,
        skipped: Mapping[str, str],
        folder: Path,
        program: Any,
    ) -> None:
        done = {name: finished[name] for name in plan}
        metrics, weights = self._metrics(), ensemble.member_weights
        comparison = Comparison(ensemble.names, weights, plan, done, skipped, metrics, self.seed)
        if getattr(rank_zero_only, "rank", 0) != 0:
            self.report = comparison.content()
            return
        self.report = write_report(comparison, folder, self.plots)
        finished.clear()
        show = partial(_show, self.report, folder)
        if program is None:
            show()
        else:  # after the host has printed all reports, the table closes the run
            weakref.finalize(program, show)


def _show(report: dict[str, Any], folder: Path) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table(report))
    console.print(f"written to {folder}", soft_wrap=True)


def _weight_average(ensemble: ParallelEnsemble) -> nn.Module:
    members = dict(zip(ensemble.names, ensemble.model_list))
    average: nn.Module = SimpleAverageAlgorithm(inplace=False).run(members)
    return average


def _report_folder(program: Any) -> Path:
    log_dir = program.log_dir
    path = program.report_save_path
    if path is not None:
        return Path(str(path).format(log_dir=log_dir) if log_dir is not None else str(path)).parent
    return Path(log_dir or ".")


def _check_program(program: Any) -> None:
    if program is None:
        raise ValueError("without FusionBench's program, call evaluate(modelpool, taskpool, folder)")
    problems = []
    if getattr(program, "taskpool", None) is None or not hasattr(program.taskpool, "evaluate"):
        problems.append("a report needs a task pool: taskpool=...")
    if getattr(program, "merged_model_save_path", None):
        problems.append("a report is of many models, of which none is saved: leave merged_model_save_path null")
    if problems:
        raise ValueError("; ".join(problems))
