"""Ensemble decoding over its members' own: time of ``generate`` of 4 tiny GPT-2, and its growth with the length.

Run ``python benchmarks/decoding.py [--rounds N] [--threads N] [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fusion_ensemble_plugin import ParallelEnsemble

MEMBERS, BATCH, PROMPT, TOKENS = 4, 4, 8, 64
LENGTHS = (32, 64, 128, 256)
RATIO_LIMIT = 1.15
EXPONENT_LIMIT = 1.2  # of the growth of time with length: 1 is linear, 2 quadratic
RESULTS = Path(__file__).parent / "results" / "decoding.json"

Generate = Callable[[int], None]


def tiny_gpt2(seed: int) -> Any:
    """Make a model of 4 layers, width 128, vocabulary 1,000: its weights stay in the cache of a CPU."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 1000, "n_positions": 512, "n_embd": 128, "n_layer": 4, "n_head": 4}
    options: dict[str, Any] = {**sizes, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**options)).eval()


def generators(members: Sequence[Any]) -> dict[str, Generate]:
    """Return what is timed: all members one after another, and the ensemble in one place and on two CPU lanes."""
    prompt = torch.randint(1000, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}

    def run(models: Sequence[Any]) -> Generate:
        def generate(tokens: int) -> None:
            for model in models:
                model.generate(prompt, max_new_tokens=tokens, **options)

        return generate

    lanes = ParallelEnsemble(members, [f"cpu:{index % 2}" for index in range(len(members))])
    return {"members": run(members), "ensemble": run([ParallelEnsemble(members)]), "two lanes": run([lanes])}


def measure(timed: dict[str, Generate], tokens: int, rounds: int) -> dict[str, list[float]]:
    """Time all in turn, ``rounds`` times, in seconds; who begins changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            timed[name](tokens)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def exponent(seconds: dict[int, float]) -> float:
    """Fit time = c * length^e by least squares on logarithms; returns e."""
    points = [(math.log(length), math.log(second)) for length, second in seconds.items()]
    x_mean, y_mean = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def main() -> int:
    """Print the ratios and the growth; exit 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=9, help="rounds of the ratio (default: 9); a third for each length"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's intra-op threads (default: 1)")
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"where the figures go (default: {RESULTS})")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    timed = generators([tiny_gpt2(seed) for seed in range(MEMBERS)])
    measure(timed, 8, 1)  # starts the workers
    seconds = measure(timed, TOKENS, arguments.rounds)
    own = seconds["members"]
    ratios = {name: median(t / m for t, m in zip(seconds[name], own)) for name in timed if name != "members"}
    by_length = {length: measure(timed, length, max(1, arguments.rounds // 3)) for length in LENGTHS}
    lengths = {name: {length: min(found[name]) for length, found in by_length.items()} for name in timed}
    exponents = {name: exponent(lengths[name]) for name in timed}

    print(f"{MEMBERS} tiny GPT-2, batch {BATCH}, {TOKENS} new tokens: members one by one {median(own):.3f} s")
    for name, ratio in ratios.items():
        print(f"  {name:10s} {ratio:.3f} of that" + (f" (limit {RATIO_LIMIT})" if name == "ensemble" else ""))
    print("milliseconds a token at " + ", ".join(map(str, LENGTHS)) + " tokens, and e in time ~ tokens^e:")
    for name in timed:
        row = "  ".join(f"{1000 * lengths[name][length] / length:7.2f}" for length in LENGTHS)
        print(f"  {name:10s} {row}   e = {exponents[name]:.3f}")
    figures = {"threads": arguments.threads, "seconds": seconds, "ratios": ratios, "lengths": lengths}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({**figures, "exponents": exponents}, indent=2) + "\n")
    return int(ratios["ensemble"] > RATIO_LIMIT or exponents["ensemble"] > EXPONENT_LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
