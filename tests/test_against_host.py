"""The rows of the README's table: what FusionBench's own ensemble does, and what this one does."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from fusion_ensemble_plugin import ParallelEnsemble

README = Path(__file__).parent.parent / "README.md"
ROWS: dict[str, Callable[[], None]] = {}
Pair = namedtuple("Pair", "left right")


def row(title: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register what proves a row of the table."""

    def register(proof: Callable[[], None]) -> Callable[[], None]:
        ROWS[title] = proof
        return proof

    return register


class Call(nn.Module):
    """A member that is a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        """Call the function."""
        return self.function(x)


@row("members with a device map")
def members_meet_on_lanes() -> None:
    def meeting() -> list[nn.Module]:
        barrier = Barrier(2, timeout=2)
        return [Call(lambda x: (barrier.wait(), x)[1]) for _ in range(2)]

    ParallelEnsemble(meeting(), {0: "cpu:0", 1: "cpu:1"})(torch.ones(2))
    host = EnsembleModule(meeting(), {0: "cpu", 1: "cpu"})
    with pytest.raises(BrokenBarrierError), pytest.warns(DeprecationWarning, match="torch.jit"):
        host(torch.ones(2))


@row("device map under `fabric.to_device` and `.to()`")
def placement_is_sticky() -> None:
    ours = nn.Sequential(ParallelEnsemble([nn.Linear(2, 2)], {0: "cpu"})).to("meta")
    hosts = nn.Sequential(EnsembleModule([nn.Linear(2, 2)], {0: "cpu"})).to("meta")
    assert next(ours.parameters()).device.type == "cpu"
    assert next(hosts.parameters()).device.type == "meta"


@row("a map that forgets a member")
def forgotten_members_are_told() -> None:
    EnsembleModule([nn.Linear(2, 2), nn.Linear(2, 2)], {0: "cpu"})
    with pytest.raises(ValueError, match="no device for '1'"):
        ParallelEnsemble([nn.Linear(2, 2), nn.Linear(2, 2)], {0: "cpu"})


@row("type of the output (`ModelOutput`, list, named tuple, ...)")
def output_types_are_kept() -> None:
    def members() -> list[nn.Module]:
        return [Call(lambda x: Pair(x, [x])), Call(lambda x: Pair(x, [x]))]

    ours, hosts = ParallelEnsemble(members())(torch.ones(2)), EnsembleModule(members())(torch.ones(2))
    assert (type(ours), type(ours.right)) == (Pair, list)
    assert (type(hosts), type(hosts[1])) == (tuple, tuple)


@row("key-value caches in the output")
def caches_are_dropped() -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=8, bos_token_id=0, eos_token_id=1)
    members = [GPT2Model(config).eval() for _ in range(2)]
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert ParallelEnsemble(members)(ids).last_hidden_state.shape == (1, 3, 4)
        with pytest.raises(ValueError, match="Unsupported type"):
            EnsembleModule(members)(ids)


@row("a member that writes into its input")
def writes_into_the_input_stay_with_the_writer() -> None:
    def members() -> list[nn.Module]:
        return [Call(lambda x: x.add_(1)), Call(lambda x: x * 1)]

    x = torch.zeros(2)
    assert ParallelEnsemble(members())(x).tolist() == [0.5, 0.5]
    assert x.tolist() == [0, 0]
    assert EnsembleModule(members())(x).tolist() == [1, 1]
    assert x.tolist() == [1, 1]


@row("state dict")
def checkpoints_go_both_ways() -> None:
    ours, hosts = (cls([nn.Linear(2, 2), nn.Linear(2, 2)]) for cls in (ParallelEnsemble, EnsembleModule))
    hosts.load_state_dict(ours.state_dict())
    ours.load_state_dict(hosts.state_dict())
    x = torch.ones(1, 2)
    torch.testing.assert_close(ours(x), hosts(x))


ELSEWHERE = {
    "outputs alive at a time, N members": "test_benchmarks.py",
    "pool larger than memory": "test_offload.py",
}
"""Rows that another file of tests proves."""


@pytest.mark.parametrize("title", ROWS)
def test_the_row_of_the_table_is_true(title: str) -> None:
    ROWS[title]()


def test_every_row_of_the_table_is_proved() -> None:
    table = README.read_text().split("## Against FusionBench's own ensemble")[1].split("##")[0]
    titles = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    assert sorted(titles) == sorted([*ROWS, *ELSEWHERE])
    assert [file for file in ELSEWHERE.values() if not (Path(__file__).parent / file).exists()] == []
