"""On a GPU: stacked and threads over FusionBench's ensemble, GPU and CPU at once, host memory in loading, copies.

Without a GPU it says so; ``--device cpu`` tries the same code there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from fusion_bench.utils.instantiate_utils import set_print_function_call
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import in_turn, peak_since, ratio, reset_peak
from benchmarks.models import images, small_vit, vision_tower
from benchmarks.offload import HIDDEN, MEMBERS, WIDTH, pool
from benchmarks.report import Figure, Result, run
from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm

TOWERS, ON_CPU = 8, 1
BATCHES = (1, 4, 16, 64)
MEMBER_BYTES = 4 * (2 * WIDTH * HIDDEN + WIDTH + HIDDEN)
LOADING_LIMIT = 1.2


def finished(call: Callable[[], object], device: str) -> Callable[[], None]:
    """Return a call that waits until the device has done its work."""

    def wait() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return wait


@torch.inference_mode()
def executors(device: str, make: Callable[[int], Any], size: int, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Compare the executors with FusionBench's ensemble, all members on the device."""
    host = EnsembleModule([make(seed) for seed in range(TOWERS)], dict.fromkeys(range(TOWERS), device))
    figures, samples = [], {}
    for executor in ("sequential", "threads", "stacked"):
        ours = ParallelEnsemble([make(seed) for seed in range(TOWERS)], device, executor=executor)
        for batch in BATCHES:
            x = images(batch, size).to(device)
            calls = {"ours": finished(partial(ours, x), device), "host": finished(partial(host, x), device)}
            seconds = samples[f"{executor} {batch}"] = in_turn(calls, rounds)
            figures.append(Figure(f"{executor} over FusionBench, batch {batch}", ratio(seconds, "ours", "host")))
        ours.close()
        del ours
    return figures, samples


@torch.inference_mode()
def two_devices(device: str, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Compare small towers on the device, one of them on the CPU, with the slower of the two parts alone."""
    places = [device] * (TOWERS - ON_CPU) + ["cpu:1"] * ON_CPU
    x = images(4, 64)
    host_map: dict[int, int | str] = {index: place.replace("cpu:1", "cpu") for index, place in enumerate(places)}
    ours = ParallelEnsemble(_small_vits(TOWERS), places)
    named: dict[str, nn.Module] = {
        "both": ours,
        "host": EnsembleModule(_small_vits(TOWERS), host_map),
        "device": ParallelEnsemble(_small_vits(TOWERS - ON_CPU), device),
        "cpu": ParallelEnsemble(_small_vits(ON_CPU), "cpu"),
    }
    seconds = in_turn({name: finished(partial(model, x), device) for name, model in named.items()}, rounds)
    ours.close()
    slower = [max(pair) for pair in zip(seconds["device"], seconds["cpu"])]
    seconds["slower part"] = slower
    name = f"{TOWERS - ON_CPU} small ViTs on {device}, {ON_CPU} on the CPU, over the slower part alone"
    both, hosts = (ratio(seconds, which, "slower part") for which in ("both", "host"))
    return [Figure(name, both, host=hosts)], {"two devices": seconds}


def _small_vits(count: int) -> list[nn.Module]:
    return [small_vit(seed) for seed in range(count)]


def loading(device: str) -> list[Figure]:
    """Measure the host's memory while members of 64 MiB are loaded to the device."""
    torch.ones(1, device=device)  # what the device's driver needs for itself is there from here on
    before = reset_peak()
    with set_print_function_call(False):
        ours = SimpleEnsembleAlgorithm(device_map=device).run(pool())
        peak = peak_since(before) / MEMBER_BYTES
        del ours
        before = reset_peak()
        host = EnsembleModule(list(pool().models()), dict.fromkeys(range(MEMBERS), device))
        hosts = peak_since(before) / MEMBER_BYTES
    del host
    return [Figure(f"host memory while {MEMBERS} members are loaded", peak, "members", LOADING_LIMIT, hosts)]


@torch.inference_mode()
def copies(device: str) -> list[Figure]:
    """Count the copies in one forward of 8 towers on the device, the input on the CPU."""
    x = images(4, 64)
    host = EnsembleModule(_small_vits(TOWERS), dict.fromkeys(range(TOWERS), device))
    ours = ParallelEnsemble(_small_vits(TOWERS), device, executor="threads")
    found, hosts = (_copies_in(finished(partial(model, x), device), device) for model in (ours, host))
    ours.close()
    return [Figure(f"copies between host and {device} in a forward", found, "copies", host=hosts)]


def _copies_in(call: Callable[[], None], device: str) -> int:
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    with profile(activities=activities) as profiler:
        call()
    wanted = ("Memcpy HtoD", "Memcpy DtoH") if device.startswith("cuda") else ("aten::copy_",)
    return sum(event.name.startswith(wanted) for event in profiler.events() or ())


def measure(arguments: argparse.Namespace) -> Result:
    """Measure all of it on the first GPU."""
    device = arguments.device or ("cuda:0" if torch.cuda.is_available() else None)
    if device is None:
        return Result("executors, two devices, loading and copies on a GPU", note="no GPU")
    make, size = (small_vit, 64) if arguments.quick else (vision_tower, 224)
    figures, samples = executors(device, make, size, arguments.rounds)
    more, seconds = two_devices(device, arguments.rounds)
    figures += [*more, *loading(device), *copies(device)]
    return Result(f"{TOWERS} towers on {device}", figures, samples={**samples, **seconds})


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="measure on this device (default: cuda:0 if it is there)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep the figures."""
    return run("accelerator", measure, 15, arguments, _options)


if __name__ == "__main__":
    raise SystemExit(main())
