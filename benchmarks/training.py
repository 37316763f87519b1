"""Time the training of the offline benchmark, which a user waits for on first use."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import torch

from fusion_ensemble_plugin.demo.store import SEED
from fusion_ensemble_plugin.demo.training import train


def main() -> None:
    """Train into a temporary folder and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        train(Path(folder), SEED)
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    figures = {name: round(seconds, 1) for name, seconds in took.items()}
    print(json.dumps({"cores": os.cpu_count(), "torch": torch.__version__, **figures}))


if __name__ == "__main__":
    main()
