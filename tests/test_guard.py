"""A member that writes into its input changes neither what the other members see nor the caller's tensors."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from containers import same
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble

MAPS = [None, ["cpu:0"] * 3, ["cpu:0", "cpu:1", "cpu:0"], ["cpu:0", "cpu:1", "cpu:2"]]


class InPlace(nn.Module):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Moody(nn.Module):
    """Writes into its input in a branch that it does not take at first."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = False

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if self.writes else x * 2


class Reader(nn.Module):
    """Leaves its input alone, and notes which tensor it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.data_ptr())
        return x + 1


@pytest.mark.parametrize("device_map", MAPS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_neither_the_other_members_nor_the_caller_see_what_a_member_writes(device_map: Any, mode: Any) -> None:
    ensemble = ParallelEnsemble([InPlace(), Reader(), InPlace()], device_map)
    with mode():
        x = torch.tensor([1.0, 3.0])
        for _ in range(3):
            assert same(ensemble(x), torch.tensor([2.0, 16 / 3]))
            assert x.tolist() == [1.0, 3.0]
    ensemble.close()


class Doubling(nn.Module):
    """Puts something else into its input's containers and takes something out, as a model does with its batch."""

    def forward(self, batch: dict[str, Any], rows: list[Tensor]) -> Tensor:
        batch["x"] = batch["x"] * 2
        batch["added"] = 1
        return batch["x"] + batch.pop("y") + rows.pop()


@pytest.mark.parametrize("device_map", MAPS)
def test_what_a_member_puts_into_containers_or_takes_out_of_them_is_its_own_affair(device_map: Any) -> None:
    ensemble = ParallelEnsemble([Doubling(), Doubling(), Doubling()], device_map)
    batch, rows = {"x": torch.ones(2), "y": torch.ones(2)}, [torch.ones(2)]
    for _ in range(3):
        assert ensemble(batch, rows=rows).tolist() == [4, 4]
        assert same(batch, {"x": torch.ones(2), "y": torch.ones(2)})
        assert same(rows, [torch.ones(2)])
    ensemble.close()


@pytest.mark.parametrize("device_map", MAPS)
def test_inputs_that_are_no_tensors_come_as_they_are(device_map: Any) -> None:
    class Echo(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return [id(arg) for arg in args], kwargs

    ensemble, thing = ParallelEnsemble([Echo(), Echo(), Echo()], device_map), object()
    for _ in range(3):
        assert ensemble(None, thing, "text", flag=True, size=(3, None)) == (
            [id(None), id(thing), id("text")],
            {"flag": True, "size": (3, None)},
        )
    ensemble.close()


def test_the_hosts_ensemble_is_corrupted_by_it() -> None:
    x = torch.tensor([1.0, 3.0])
    EnsembleModule([InPlace(), Reader()])(x)
    assert x.tolist() == [2.0, 6.0]  # else the row of the README's table that says so is no longer true


def test_tensors_in_containers_and_keywords_are_guarded_too() -> None:
    class Deep(nn.Module):
        def forward(self, batch: dict[str, list[Tensor]], *, mask: Tensor) -> Tensor:
            return batch["x"][0].add_(mask.mul_(2))

    batch, mask = {"x": [torch.ones(1)]}, torch.ones(1)
    ensemble = ParallelEnsemble([Deep(), Deep()])
    for _ in range(2):
        assert ensemble(batch, mask=mask).item() == 3.0
    assert (batch["x"][0].item(), mask.item()) == (1.0, 1.0)


def test_a_view_that_is_written_to_counts() -> None:
    class ViewWriter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[0].zero_()
            return x.sum()

    x = torch.ones(3)
    ensemble = ParallelEnsemble([ViewWriter(), ViewWriter()])
    assert [ensemble(x).item() for _ in range(2)] == [2.0, 2.0]
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_members_that_leave_their_input_alone_share_the_callers_from_the_second_call_on() -> None:
    members, x = [Reader(), Reader()], torch.ones(2)
    ensemble = ParallelEnsemble(members)
    for _ in range(3):
        ensemble(x)
    for member in members:
        assert member.given[0] != x.data_ptr()
        assert member.given[1:] == [x.data_ptr()] * 2


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1", "cpu:2"]])
def test_a_member_that_writes_later_is_an_error_that_names_it_once(device_map: Any) -> None:
    moody, x = Moody(), torch.ones(2)
    ensemble = ParallelEnsemble([Reader(), moody, Reader()], device_map, names=["mnist", "svhn", "dtd"])
    ensemble(x)
    moody.writes = True
    with pytest.raises(RuntimeError, match="member 'svhn' wrote into its input in place"):
        ensemble(x)
    x = torch.ones(2)
    for moody.writes in (True, False, True):  # it is not trusted again
        ensemble(x)
        assert x.tolist() == [1.0, 1.0]
    ensemble.close()


def test_a_member_that_runs_beside_the_one_that_writes_is_not_blamed_for_it() -> None:
    started, written = threading.Event(), threading.Event()

    class Waiting(Reader):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            assert written.wait(30)
            return super().forward(x)

    class WritesNow(Moody):
        def forward(self, x: Tensor) -> Tensor:
            assert started.wait(30)  # the other one's counters have been read
            output = super().forward(x)
            written.set()
            return output

    waiting, moody, x = Waiting(), WritesNow(), torch.ones(2)
    ensemble = ParallelEnsemble([waiting, moody], ["cpu:0", "cpu:1"], names=["waiting", "moody"])
    ensemble(x)
    started.clear()
    written.clear()
    moody.writes = True
    with pytest.raises(RuntimeError, match="member 'moody' wrote into its input"):
        ensemble(x)
    ensemble.close()


def test_gradients_reach_the_callers_input_through_the_copies() -> None:
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ensemble = ParallelEnsemble([InPlace(), Reader()])
    for _ in range(2):
        x.grad = None
        ensemble(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [1.5, 1.5]


def test_a_stack_of_members_that_write_is_guarded_as_one() -> None:
    class Shifted(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([shift]), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x * self.shift

    x = torch.tensor([1.0])
    ensemble = ParallelEnsemble([Shifted(1.0), Shifted(3.0)], executor="stacked")
    assert [ensemble(x).item() for _ in range(2)] == [4.0, 4.0]
    assert x.item() == 1.0
