"""Reading an ensemble from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusion_ensemble_plugin.placement import Placement, resolve
from fusion_ensemble_plugin.saving.manifest import FILE
from fusion_ensemble_plugin.saving.members import Modules, SavedMembers
from fusion_ensemble_plugin.saving.recipe import find_class, missing_arguments


def load(
    cls: Any,
    source: str | Path,
    device_map: Any = None,
    *,
    models: Modules | None = None,
    revision: str | None = None,
    lanes: int | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload: str | None = None,
    **options: Any,
) -> Any:
    """Load a saved ensemble; each member goes to its device before the next one is read.

    Args:
        cls: The ensemble's class, or one that it comes from.
        source: The folder, or the id of a repository on the Hugging Face hub.
        device_map: Where members go, as for the ensemble; None for the CPU.
        models: Modules by the member's name, or a function of the name, for members saved as weights alone.
        revision: For a repository: branch, tag or commit.
        lanes: With "auto" on a machine without accelerators: the number of CPU lanes.
        max_memory: Bytes that members may take on each device.
        offload: Where members are kept that do not fit: "cpu" or "disk".
        **options: The ensemble's options, in the place of those saved.

    Raises:
        FileNotFoundError: If there is no such ensemble, or if one of its files is missing.
        ValueError: If it is damaged or can't be loaded as ``cls``, or if an option is wrong.
        ConnectionError: If it is not here and the hub can't be reached; says what to do.
    """
    members = SavedMembers(source, models, cls, revision)
    manifest = members.manifest
    made = find_class(manifest.class_name, cls)
    saved = {
        "names": manifest.names,
        "weights": [member.weight for member in manifest.members],
        "reducer": manifest.reducer,
        "output_keys": manifest.output_keys,
        "autocast": None if manifest.autocast is None else getattr(torch, manifest.autocast, None),
    }
    options = {**saved, **options}
    if manifest.reducer is None and options["reducer"] is None:
        raise ValueError(f"{members.folder / FILE} names no reducer: it was an object without a name; give reducer=")
    if missing := missing_arguments(made, options):
        raise ValueError(
            f"a {made.__name__} needs {', '.join(missing)}, which is not saved; give it to from_pretrained"
        )
    members.check_modules()
    if not isinstance(device_map, Placement):
        device_map = resolve(
            device_map, manifest.names, members.sizes(), lanes=lanes, max_memory=max_memory, offload=offload
        )
    return made(members, device_map, offload=offload, **options)
