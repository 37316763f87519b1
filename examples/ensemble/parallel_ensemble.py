"""Evaluate the parallel ensemble of a model pool with FusionBench's pools and task pools, in Python.

    python parallel_ensemble.py

runs the offline benchmark on two CPU lanes. The eight-task benchmark, with a model hub and two GPUs:

    python parallel_ensemble.py \
        --modelpool CLIPVisionModelPool/clip-vit-base-patch32_TA8 \
        --taskpool CLIPVisionModelTaskPool/clip-vit-classification_TA8 \
        --device-map cuda:0 cuda:0 cuda:0 cuda:0 cuda:1 cuda:1 cuda:1 cuda:1
"""

from __future__ import annotations

import argparse

import lightning
from fusion_bench.constants import DEFAULT_CONFIG_PATH
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir

from fusion_ensemble_plugin import SimpleEnsembleAlgorithm


def main() -> None:
    """Compose, instantiate, run, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelpool", default="CLIPVisionModelPool/clip-vit-tiny_TA4")
    parser.add_argument("--taskpool", default="CLIPVisionModelTaskPool/clip-vit-tiny_TA4")
    parser.add_argument(
        "--device-map", nargs="+", default=["cpu:0", "cpu:1", "cpu:0", "cpu:1"], help="one device a member, or auto"
    )
    options = parser.parse_args()
    device_map = options.device_map[0] if len(options.device_map) == 1 else options.device_map

    # FusionBench's configuration, as its command line composes it; this package's pools are found there too
    with initialize_config_dir(str(DEFAULT_CONFIG_PATH), version_base=None):
        config = compose("fabric_model_fusion", [f"modelpool={options.modelpool}", f"taskpool={options.taskpool}"])
    modelpool = instantiate(config.modelpool)
    taskpool = instantiate(config.taskpool)
    fabric = lightning.Fabric(accelerator="auto", devices=1)
    taskpool.fabric = fabric

    ensemble = SimpleEnsembleAlgorithm(device_map=device_map).run(modelpool)
    report = taskpool.evaluate(ensemble)

    for task, figures in report.items():
        if "accuracy" in figures:
            print(f"{task:12} accuracy {figures['accuracy']:.3f}, loss {figures['loss']:.3f}")


if __name__ == "__main__":
    main()
