"""The task pool on which members are chosen, and whether its data are those that are reported afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from fusion_bench.compat.taskpool import load_taskpool_from_config
from fusion_bench.utils.instantiate_utils import instantiate
from omegaconf import OmegaConf

from fusion_ensemble_plugin.algorithms import plain
from fusion_ensemble_plugin.selection.data import have_samples_in_common

DATA = ("test_datasets", "tasks")
"""The options in which FusionBench's task pools have their tasks' data: by name, or a list of names or configs."""

NOT_THE_DATA = (
    "dataloader_kwargs",
    "batch_size",
    "num_workers",
    "fast_dev_run",
    "move_to_device",
    "_usage_",
    "_version_",
)
"""Options of a task pool that change how its data are read, not what they are."""


def make_taskpool(spec: Any, program: Any) -> Any:
    """Make a task pool from its config as the host's program makes its own; one that is made already is taken as it is.

    Args:
        spec: A config with ``_target_``, or a task pool.
        program: The host's program, or None.
    """
    if not isinstance(plain(spec), Mapping):
        return spec
    if "_target_" in spec:
        pool = instantiate(spec, _recursive_=plain(spec).get("_recursive_", False))
    else:  # written for the host's versions before 0.2, as some of its own still are
        pool = load_taskpool_from_config(OmegaConf.create(plain(spec)))
    if hasattr(pool, "_program"):
        pool._program = program
    if program is not None and hasattr(pool, "_fabric_instance"):
        pool._fabric_instance = copy(program.fabric)
        pool._fabric_instance._loggers = []  # else the pool writes a report file for each of many evaluations
    return pool


def check_taskpool(spec: Any, tasks: Any) -> None:
    """Check what can be known of a task pool before it is made.

    Raises:
        ValueError: If it is none, or does not have the tasks.
    """
    if isinstance(plain(spec), Mapping):
        if not {"_target_", "type"} & set(plain(spec)):
            raise ValueError("selection_taskpool has no _target_: the config of a task pool is needed")
    elif not hasattr(spec, "evaluate"):
        raise ValueError(
            f"selection_taskpool={spec!r}: a task pool is needed to choose by, for example "
            "taskpool@method.selection_taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4_train"
        )
    known = task_data(spec)
    asked = tasks if isinstance(tasks, (list, tuple)) else ()
    unknown = [task for task in asked if known and task not in known]
    if unknown:
        raise ValueError(f"no task {', '.join(map(repr, unknown))} in selection_taskpool; it has {', '.join(known)}")


def same_data(spec: Any, program: Any) -> list[str]:
    """Return the tasks of a task pool whose data the program's own task pool has too, under whatever name.

    Data are the same if their configs are, or if they are the same object. Parts that
    `fusion_ensemble_plugin.selection.data.every_nth` makes are the same if they overlap.
    """
    reported = None if program is None else _reported(program)
    if reported is None:
        return []
    if spec is reported:
        return list(task_data(spec)) or ["all"]
    ours, theirs = task_data(spec), task_data(reported)
    if ours and theirs:
        return [
            task for task, data in ours.items() if any(have_samples_in_common(data, other) for other in theirs.values())
        ]
    return ["all"] if _data_options(spec) == _data_options(reported) else []


def task_data(spec: Any) -> dict[str, Any]:
    """Return a task pool's data by task, as configs or as data sets; nothing if it keeps them in another way."""
    options = plain(spec)
    if not isinstance(options, Mapping):
        options = {name: plain(getattr(spec, f"_{name}", None) or getattr(spec, name, None)) for name in DATA}
    found: Any = next((options[name] for name in DATA if options.get(name)), {})
    if isinstance(found, Mapping):
        return dict(found)
    return dict(map(_listed, [found] if isinstance(found, str) else found))


def _listed(task: Any) -> tuple[str, Any]:
    """Return the name and the data of a task in a list."""
    return (str(task["name"]), task.get("dataset", task)) if isinstance(task, Mapping) else (str(task), task)


def _reported(program: Any) -> Any:
    """Return the task pool, or its config, that the program evaluates the result with."""
    config = getattr(program, "_taskpool", None)
    return getattr(program, "taskpool", None) if config is None else config


def _data_options(spec: Any) -> Any:
    """Return the options that say what a task pool's data are; an object of its own if they are not known."""
    options = plain(spec)
    if not isinstance(options, Mapping):
        return object()
    return {key: value for key, value in options.items() if key not in NOT_THE_DATA}
