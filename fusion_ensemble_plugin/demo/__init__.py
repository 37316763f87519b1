"""The offline benchmark ``clip-vit-tiny_TA4``: real data, real training, no network."""

from fusion_ensemble_plugin.demo.data import TASKS, load_dataset
from fusion_ensemble_plugin.demo.store import model_folder
from fusion_ensemble_plugin.demo.tasks import register_tasks

__all__ = ["TASKS", "load_dataset", "model_folder"]

register_tasks()
