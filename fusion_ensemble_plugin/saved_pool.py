"""A saved ensemble's members as a FusionBench model pool, for any of its methods."""

from __future__ import annotations

from typing import Any

from fusion_bench.mixins.serialization import BaseYAMLSerializable, auto_register_config
from fusion_bench.modelpool.base_pool import BaseModelPool
from omegaconf import OmegaConf

from fusion_ensemble_plugin.saving.manifest import MODULE, read_manifest
from fusion_ensemble_plugin.saving.source import local_folder


@auto_register_config
class SavedEnsemblePool(BaseModelPool):
    """The members of a saved ensemble under their names, each loaded when a method asks for it.

    Args:
        path: The folder that ``save_pretrained`` or ``merged_model_save_path`` wrote, or a repository's id on the hub.
        revision: For a repository: branch, tag or commit.

    Raises:
        FileNotFoundError: If there is no saved ensemble.
        ValueError: If it is damaged, or holds the weights alone of some members, which only Python code can load.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> from fusion_ensemble_plugin import ParallelEnsemble
        >>> config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> with TemporaryDirectory() as folder:
        ...     ensemble = ParallelEnsemble([CLIPVisionModel(config), CLIPVisionModel(config)], names=["svhn", "dtd"])
        ...     ensemble.save_pretrained(folder)
        ...     SavedEnsemblePool(folder).model_names
        ['svhn', 'dtd']
    """

    path: str
    revision: str | None

    # what a YAML file of the pool holds: where the members come from, not what was found there
    _config_mapping = BaseYAMLSerializable._config_mapping

    def __init__(self, path: str, revision: str | None = None, **kwargs: Any) -> None:
        folder = local_folder(path, revision)
        members = read_manifest(folder).members
        if bare := [member.name for member in members if member.kind == MODULE]:
            raise ValueError(
                f"{folder} holds only the weights of {', '.join(map(repr, bare))}, whose class is none of "
                "transformers; load it in Python: ParallelEnsemble.from_pretrained(path, models={name: module, ...})"
            )
        load = f"{__package__}.saving.load_member"
        models = {member.name: {"_target_": load, "path": str(folder), "name": member.name} for member in members}
        super().__init__(OmegaConf.create(models), **kwargs)

    def save_model(self, model: Any, path: str, **kwargs: Any) -> None:
        """Save what a method has made: as a model of transformers or an ensemble saves itself, else its state dict.

        Args:
            model: A module.
            path: A folder, or the state dict's file.
            **kwargs: What ``merged_model_save_kwargs`` holds.
        """
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(path, **kwargs)
        else:
            super().save_model(model, path, **kwargs)
