"""FusionBench methods: ``method=ensemble/...``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fusion_bench.method.base_algorithm import BaseAlgorithm
from fusion_bench.mixins.serialization import auto_register_config
from omegaconf import OmegaConf
from pluggy import PluginValidationError

from fusion_ensemble_plugin.cache.outputs import check_cache, make_cache
from fusion_ensemble_plugin.device_map import DeviceMap
from fusion_ensemble_plugin.distributed.ensemble import spread
from fusion_ensemble_plugin.distributed.layout import Layout, arrange
from fusion_ensemble_plugin.distributed.link import Link
from fusion_ensemble_plugin.distributed.meeting import Meeting, same_names
from fusion_ensemble_plugin.distributed.members import OwnMembers, parameter_counts
from fusion_ensemble_plugin.ensemble import ParallelEnsemble, compile_options
from fusion_ensemble_plugin.fields import checked_keys
from fusion_ensemble_plugin.host import warn_if_untested
from fusion_ensemble_plugin.loading import MemberLoader
from fusion_ensemble_plugin.placement import Placement, describe, resolve
from fusion_ensemble_plugin.plugins import executor_factory, make_reducer
from fusion_ensemble_plugin.reducer import WeightRule, weight_rule
from fusion_ensemble_plugin.weights import Weights, resolve_weights

log = logging.getLogger(__name__)

_OPTIONS = ("reducer", "weights", "executor", "output_keys", "output_device", "dtype", "autocast", "compile")
"""The constructor's arguments that are the ensemble's too."""


@auto_register_config
class SimpleEnsembleAlgorithm(BaseAlgorithm):
    """The parallel ensemble of all models in a pool: y(x) = 1/N sum_i f_i(x).

    Every argument is plain data, as it stands in ``config/method/ensemble/simple_ensemble.yaml``.

    Args:
        device_map: Where members go: None (they stay), "auto", one device, a list, or a mapping from index or name.
        reducer: Name of a reducer, or a mapping with ``_target_``; None for the variant's own (here the mean).
        weights: One number a member, as a list or by name; None for equal weights.
        executor: "auto", "sequential", "threads", "stacked", or the name of a plugin's executor.
        output_keys: Keep only these fields of the members' outputs; None for all.
        output_device: Where outputs come back; None for the input's accelerator, else the first member's device.
        dtype: Cast the members to this floating dtype ("float16", "bfloat16", "float32", "float64"); None leaves them.
        lanes: With ``device_map="auto"`` on a machine without accelerators: the number of CPU lanes; None for one.
        max_memory: Bytes that members may take on each device, such as ``{"cuda:0": "20GiB", "cpu": "64GiB"}``.
        offload: Keep what does not fit in "cpu" memory or on "disk", and let it visit its device; None refuses.
        autocast: Run the members under autocast to this dtype ("bfloat16", "float16"); None does not.
        compile: Compile each member with ``torch.compile``: true, or a mapping of its options; false does not.
        member_parallel: Spread the members over Fabric's ranks: true over all, a number over teams of that many; false
            puts all members on every rank.
        rank_timeout: With ``member_parallel``: seconds that a rank waits for the others.
        cache: Keep members' outputs, so that no member computes the same twice: "memory", "disk" (files that later
            runs find); None keeps nothing.
        cache_bytes: CPU memory for kept outputs; what exceeds it goes to files.
        cache_dir: Folder for those files; None for a temporary one, or with "disk" for one in the user's cache folder.

    Examples:
        >>> ensemble = SimpleEnsembleAlgorithm(device_map="cpu").run([torch.nn.Identity(), torch.nn.ReLU()])
        >>> ensemble(torch.tensor([-2.0, 4.0]))
        tensor([-1.,  4.])
    """

    ensemble_class = ParallelEnsemble
    """What a variant changes: the ensemble that `run` builds."""

    # set from the constructor's arguments by `auto_register_config`, as are all others
    device_map: Any
    reducer: Any
    dtype: Any
    offload: Any
    member_parallel: Any
    rank_timeout: Any
    cache: Any
    cache_bytes: Any
    cache_dir: Any

    def __init__(
        self,
        device_map: DeviceMap = None,
        reducer: str | Mapping[str, Any] | None = None,
        weights: Weights = None,
        executor: str = "auto",
        output_keys: Sequence[str] | None = None,
        output_device: str | None = None,
        dtype: str | None = None,
        lanes: int | None = None,
        max_memory: Mapping[Any, Any] | None = None,
        offload: str | None = None,
        autocast: str | None = None,
        compile: bool | Mapping[str, Any] = False,
        member_parallel: bool | int = False,
        rank_timeout: float = 600.0,
        cache: str | None = None,
        cache_bytes: int | str = "4GiB",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def run(self, modelpool: Any) -> ParallelEnsemble:
        """Load the members and build the ensemble.

        Args:
            modelpool: A FusionBench model pool, or a list or mapping of modules.

        Raises:
            ValueError: If an option is wrong, before any model is loaded; the message lists all that is.
            Exception: A member's own loading error, with a note that names the member.
            RankError: With ``member_parallel``, if another rank fails or is not there in time.
        """
        warn_if_untested()
        meeting = Meeting(self.rank_timeout, alone=self.member_parallel is False)
        with meeting.together("checking the options") as names:
            names.message = MemberLoader(modelpool).names
            options = self._checked_options(names.message, modelpool, meeting)
        same_names(names.others)
        layout = arrange(self.member_parallel, meeting.world, meeting.rank, names.message)
        with meeting.together("loading the members") as counts:
            ensemble = self._loaded(modelpool, layout, options)
            counts.message = parameter_counts(ensemble)
        if layout is None or meeting.roll is None:
            return ensemble
        return spread(ensemble, Link(layout, meeting.roll, meeting.timeout), counts.others)

    def _loaded(self, modelpool: Any, layout: Layout | None, options: dict[str, Any]) -> ParallelEnsemble:
        """Load this process's members and build the ensemble with them."""
        dtype = options.pop("dtype")
        loader = MemberLoader(modelpool, dtype) if layout is None else OwnMembers(modelpool, dtype, layout)
        placement = self._placement(loader)
        if placement is not None:
            log.info("members and their places:\n%s", describe(placement, loader.names, loader.sizes()))
        return self._build(modelpool, loader, placement, names=loader.names, offload=self.offload, **options)

    def _build(
        self, modelpool: Any, models: MemberLoader, placement: Placement | None, **options: Any
    ) -> ParallelEnsemble:
        """Make the ensemble; what a variant overrides that needs more of the pool than its members."""
        del modelpool
        return self.ensemble_class(models, placement, **options)

    def _check_pool(self, modelpool: Any) -> None:
        """Raise ``ValueError`` if the pool lacks what a variant needs, before any model is loaded."""

    def _reducer(self) -> Any:
        """Return the reducer as it was asked for; what a variant with options of its own overrides."""
        return plain(self.reducer) or self.ensemble_class.default_reducer

    def _placement(self, loader: MemberLoader) -> Placement | None:
        where = {key: plain(getattr(self, key)) for key in ("lanes", "max_memory", "offload")}
        bounded = where["max_memory"] is not None or where["offload"] is not None
        return resolve(plain(self.device_map), loader.names, loader.sizes(exact=bounded), **where)

    def _checked_options(self, names: Sequence[str], modelpool: Any, meeting: Meeting) -> dict[str, Any]:
        """Return the ensemble's options as plain data, all checked."""
        options = {key: plain(getattr(self, key)) for key in _OPTIONS}
        where = {key: plain(getattr(self, key)) for key in ("lanes", "max_memory", "offload")}
        checks = [
            lambda: resolve(plain(self.device_map), names, self._known_sizes(modelpool), **where),
            lambda: resolve(options["output_device"], ["output"], option="output_device"),
            lambda: make_reducer(self._reducer()),
            lambda: resolve_weights(options["weights"], names, self._weight_rule()),
            lambda: executor_factory(options["executor"]),
            lambda: checked_keys(options["output_keys"]),
            lambda: compile_options(options["compile"]),
            lambda: torch_dtype(options["dtype"]),
            lambda: torch_dtype(options["autocast"], "autocast"),
            lambda: check_cache(self.cache, self.cache_bytes, self.cache_dir),
            lambda: arrange(self.member_parallel, meeting.world, meeting.rank, names),
            lambda: self._check_pool(modelpool),
        ]
        problems = dict.fromkeys(problem for check in checks if (problem := problem_of(check)))  # each once
        if problems:
            raise ValueError("\n".join(problems))
        return {
            **options,
            "reducer": self._reducer(),
            "dtype": torch_dtype(options["dtype"]),
            "autocast": torch_dtype(options["autocast"], "autocast"),
            "cache": make_cache(self.cache, self.cache_bytes, self.cache_dir),
        }

    def _known_sizes(self, modelpool: Any) -> list[int] | None:
        """Return the members' bytes if they are known before loading, and all members are this process's."""
        try:
            dtype = torch_dtype(plain(self.dtype))
        except ValueError:
            return None
        return MemberLoader(modelpool, dtype).sizes() if self.member_parallel is False else None

    def _weight_rule(self) -> WeightRule:
        """Return which weights the reducer takes; any number if the reducer itself is wrong, which is told already."""
        try:
            return weight_rule(make_reducer(self._reducer()))
        except (ValueError, TypeError):
            return "signed"


def plain(value: Any) -> Any:
    """Turn an OmegaConf node into plain Python data; leave everything else."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def torch_dtype(name: str | None, option: str = "dtype") -> torch.dtype | None:
    """Return a floating dtype by its torch name, with or without ``torch.``.

    Raises:
        ValueError: If there is no such floating dtype.

    Examples:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    if name is None:
        return None
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{option}={name!r}: needed is float16, bfloat16, float32 or float64")
    return dtype


def problem_of(check: Callable[[], object]) -> str:
    """Return what is wrong in words; nothing if the check passes."""
    try:
        check()
    except (ValueError, TypeError, PluginValidationError) as error:
        return str(error)
    return ""
