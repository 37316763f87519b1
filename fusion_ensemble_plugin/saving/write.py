"""Writing an ensemble to a folder."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import nn

from fusion_ensemble_plugin.heads import returns_logits
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.saving import rebuild
from fusion_ensemble_plugin.saving.folder import check_space, check_target, data_folder, staged
from fusion_ensemble_plugin.saving.manifest import ENSEMBLE, MODULE, TRANSFORMERS, Manifest, SavedMember
from fusion_ensemble_plugin.saving.recipe import class_name, reducer_name
from fusion_ensemble_plugin.saving.weights import (
    Tensors,
    same_bits,
    split_persistent,
    sync,
    tensors_of,
    ties_of,
    write_tensors,
)
from fusion_ensemble_plugin.sizes import module_bytes

if TYPE_CHECKING:
    from fusion_ensemble_plugin.ensemble import ParallelEnsemble

log = logging.getLogger(__name__)

WEIGHTS, BUFFERS = "model.safetensors", "buffers.safetensors"
PACKAGES = ("fusion-ensemble-plugin", "fusion-bench", "transformers", "torch", "safetensors")


def save(ensemble: ParallelEnsemble, path: str | Path, push_to_hub: bool = False) -> None:
    """Write an ensemble to a folder, all of it or nothing; of several processes, the first one does.

    Each member's weights are written once, and once for all members that have the same, bit for bit. Not kept are
    devices and how members are run: these are chosen anew when it is loaded.

    Args:
        ensemble: What to save.
        path: A folder: new, empty, or a saved ensemble, which is replaced.
        push_to_hub: Accepted for FusionBench's pools, which pass it on; only False is possible.

    Raises:
        ValueError: If something can't be saved, or if the path is something else than such a folder.
        OSError: If the disk does not take it; what was there before is as it was.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    target = Path(path).expanduser().resolve()
    if push_to_hub:
        raise ValueError(f"push_to_hub: save to {path} first, then upload that folder (hf upload REPOSITORY {path})")
    check_target(target)
    _check(ensemble)
    check_space(target, module_bytes(ensemble))
    try:
        with staged(target) as folder:
            write_ensemble(ensemble, folder)
    except OSError as error:
        add_note(error, f"while saving the ensemble to {target}; nothing of it is left, an earlier save is as it was")
        raise


def write_ensemble(ensemble: ParallelEnsemble, folder: Path) -> Manifest:
    """Write an ensemble's members and its manifest into a folder."""
    data = data_folder(folder)
    written: list[tuple[Tensors, dict[str, int]]] = []
    members = tuple(
        _write_member(name, weight, _bare(member), data / str(index), written)
        for index, (name, weight, member) in enumerate(
            zip(ensemble.names, ensemble.member_weights, ensemble.model_list)
        )
    )
    autocast = ensemble.autocast
    manifest = Manifest(
        class_name(type(ensemble)),
        members,
        reducer_name(ensemble.reducer_spec),
        None if ensemble.output_keys is None else _plain_keys(ensemble.output_keys),
        None if autocast is None else str(autocast).removeprefix("torch."),
        {package: version(package) for package in PACKAGES},
    )
    sync(manifest.write(folder))
    sync(data)
    return manifest


def _write_member(
    name: str, weight: float, member: Any, folder: Path, written: list[tuple[Tensors, dict[str, int]]]
) -> SavedMember:
    """Write one member's config, and its weights unless those of an earlier member are the same."""
    folder.mkdir()
    place = f"{folder.parent.name}/{folder.name}"
    if _is_ensemble(member):
        inner = write_ensemble(member, folder)
        inside = {f"{place}/{file}": size for one in inner.members for file, size in one.files.items()}
        return SavedMember(name, weight, ENSEMBLE, inner.class_name, place, inside)
    tensors = tensors_of(member)
    files = next((files for others, files in written if same_bits(tensors, others)), None)
    if files is None:
        parts = dict(zip((WEIGHTS, BUFFERS), split_persistent(member, tensors)))
        files = {f"{place}/{file}": write_tensors(folder / file, part) for file, part in parts.items() if part}
        written.append((tensors, files))
    sync(folder)
    targets = getattr(member, "_fusion_bench_target_modules", None)
    common: dict[str, Any] = {"files": files, "ties": ties_of(member), "target_modules": targets and list(targets)}
    if not rebuild.is_rebuildable(member):
        where = f"{type(member).__module__}.{type(member).__qualname__}"
        log.warning("member %r (%s) is saved as weights alone: who loads it gives the module", name, where)
        return SavedMember(name, weight, MODULE, where, place, **common)
    rebuild.write_configs(member, folder)
    common |= {"attention": rebuild.attention_of(member), "logits_only": returns_logits(member)}
    return SavedMember(name, weight, TRANSFORMERS, type(member).__name__, place, **common)


def _check(ensemble: ParallelEnsemble) -> None:
    """Raise ``ValueError`` if something can't be saved, before anything is written; lists all that can't."""
    problems = []
    if ensemble.output_keys is not None and _plain_keys(ensemble.output_keys) is None:
        problems.append(f"output_keys={list(ensemble.output_keys)} can't be written as JSON")
    for name, member in zip(ensemble.names, map(_bare, ensemble.model_list)):
        try:
            _check(member) if _is_ensemble(member) else tensors_of(member)
        except ValueError as error:
            problems.append(f"member {name!r}: {error}")
    if problems:
        raise ValueError(f"the ensemble can't be saved: {'; '.join(problems)}")


def _plain_keys(keys: Sequence[Hashable]) -> list[Any] | None:
    return list(keys) if all(isinstance(key, (str, int)) for key in keys) else None


def _bare(member: nn.Module) -> Any:
    """Return the module that ``torch.compile`` has wrapped, or else the member."""
    return getattr(member, "_orig_mod", member)


def _is_ensemble(member: nn.Module) -> bool:
    return hasattr(member, "run_members")
