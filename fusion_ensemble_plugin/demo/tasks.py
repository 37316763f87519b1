"""Making the benchmark's tasks known to FusionBench: class names and prompt templates."""

from __future__ import annotations

from fusion_bench.tasks.clip_classification import CLIPTemplateFactory

from fusion_ensemble_plugin.demo import prompts
from fusion_ensemble_plugin.demo.data import TASKS


def register_tasks() -> None:
    """Register the tasks that FusionBench does not know; ``mnist`` it knows.

    FusionBench 0.2.33 stores templates given as a list under a misspelt key, so a module is given that it reads them
    from; and it insists on the lists besides.
    """
    for task in set(TASKS) - set(CLIPTemplateFactory.get_available_datasets()):
        classnames, templates = f"{task}_classnames", f"{task}_templates"
        CLIPTemplateFactory.register_dataset(
            task,
            dataset_info={"module": prompts.__name__, "classnames": classnames, "templates": templates},
            classnames=getattr(prompts, classnames),
            templates=getattr(prompts, templates),
        )
