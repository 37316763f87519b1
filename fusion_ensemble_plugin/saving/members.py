"""The members of a saved ensemble, loaded one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.saving.manifest import ENSEMBLE, FILE, MODULE, TRANSFORMERS, SavedMember, read_manifest
from fusion_ensemble_plugin.saving.rebuild import rebuild, return_logits
from fusion_ensemble_plugin.saving.source import local_folder
from fusion_ensemble_plugin.saving.weights import put_tensors, read_tensors

Modules = Mapping[str, nn.Module] | Callable[[str], nn.Module]
"""Modules by the member's name, or what makes one for a name."""


class SavedMembers:
    """The members in a folder, loaded one by one, each on the CPU and in evaluation mode.

    Args:
        source: The folder, or the id of a repository on the Hugging Face hub.
        modules: Modules that take in the weights of members that were saved as weights alone.
        ensemble_class: What loads members that are ensembles themselves.
        revision: For a repository: branch, tag or commit.

    Attributes:
        folder: Where they are.
        manifest: What was saved.

    Raises:
        FileNotFoundError: If there is no saved ensemble, or if one of its files is missing.
        ValueError: If it is damaged, or if modules are missing; the message lists all that is wrong.
    """

    def __init__(
        self,
        source: str | Path,
        modules: Modules | None = None,
        ensemble_class: Any = None,
        revision: str | None = None,
    ) -> None:
        self.folder = local_folder(source, revision)
        self.manifest = read_manifest(self.folder)
        self._modules = modules
        self._ensemble_class = ensemble_class
        self._members = {member.name: member for member in self.manifest.members}
        self._check_files()

    def sizes(self) -> list[int]:
        """Return the bytes of each member's files."""
        return [sum(member.files.values()) for member in self.manifest.members]

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.manifest.members)

    def __iter__(self) -> Iterator[nn.Module]:
        """Load one member after another."""
        self.check_modules()
        return (self.load(name) for name in self.manifest.names)

    def load(self, name: str, module: nn.Module | None = None) -> nn.Module:
        """Load one member.

        Args:
            name: Its name.
            module: What takes in its weights; by default what `modules` has for it, or a model made anew.

        Raises:
            KeyError: If there is none of this name.
            ValueError: If its files are damaged or don't fit the module.
        """
        if name not in self._members:
            raise KeyError(f"{self.folder} has no member {name!r}; it has {', '.join(map(repr, self._members))}")
        saved = self._members[name]
        try:
            return self._loaded(saved, module if module is not None else self._module(name))
        except Exception as error:
            add_note(error, f"while loading member {name!r} of {self.folder}")
            raise

    def check_modules(self) -> None:
        """Check that each member that was saved as weights alone has a module.

        Raises:
            ValueError: If not; names all members that lack one.
        """
        bare = [m for m in self.manifest.members if m.kind == MODULE]
        missing = [m for m in bare if not callable(self._modules) and m.name not in (self._modules or {})]
        if missing:
            listed = ", ".join(f"{member.name!r} ({member.class_name})" for member in missing)
            raise ValueError(
                f"{self.folder} holds only the weights of {listed}; give modules that take them in: "
                f"models={{{missing[0].name!r}: module, ...}}, or a function of the name"
            )

    def _loaded(self, saved: SavedMember, module: nn.Module | None) -> nn.Module:
        if saved.kind == ENSEMBLE:
            nested: nn.Module = self._ensemble_class.from_pretrained(self.folder / saved.folder)
            return nested
        parts = [read_tensors(self.folder / file) for file in saved.files]
        if module is None and saved.kind == TRANSFORMERS:
            checkpoint = parts[0] if parts else {}
            module = rebuild(saved.class_name, self.folder / saved.folder, saved.attention, checkpoint)
            if saved.logits_only:
                return_logits(module)
        if module is None:
            self.check_modules()
            raise ValueError(f"no module for member {saved.name!r}")
        put_tensors(module, {name: tensor for part in parts for name, tensor in part.items()}, saved.ties)
        if saved.target_modules is not None:
            module._fusion_bench_target_modules = saved.target_modules  # type: ignore[assignment]
        return module.eval()

    def _module(self, name: str) -> nn.Module | None:
        if callable(self._modules):
            return self._modules(name) if self._members[name].kind == MODULE else None
        return (self._modules or {}).get(name)

    def _check_files(self) -> None:
        missing, damaged = [], []
        for member in self.manifest.members:
            for file, size in _files(member).items():
                found = (self.folder / file).stat().st_size if (self.folder / file).is_file() else None
                if found is None:
                    missing.append(f"member {member.name!r}: {self.folder / file} is missing")
                elif size is not None and found != size:
                    damaged.append(f"member {member.name!r}: {self.folder / file} has {found} bytes of {size}")
        if missing:
            raise FileNotFoundError("; ".join(missing + damaged))
        if damaged:
            raise ValueError("; ".join(damaged))


def load_member(path: str | Path, name: str, module: nn.Module | None = None) -> nn.Module:
    """Load one member of a saved ensemble.

    Args:
        path: The folder, or the id of a repository on the Hugging Face hub.
        name: The member's name.
        module: What takes in its weights, if it was saved as weights alone.
    """
    return SavedMembers(path).load(name, module)


def _files(member: SavedMember) -> dict[str, int | None]:
    """Return a member's files and their bytes, None for what may have any."""
    if member.kind == ENSEMBLE:
        return {**member.files, f"{member.folder}/{FILE}": None}
    if member.kind == TRANSFORMERS:
        return {**member.files, f"{member.folder}/config.json": None}
    return dict(member.files)
