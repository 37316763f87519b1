"""A pool larger than memory: members rest in CPU memory or on disk, and the answer is the same to the last bit."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.placement import Placement

KEPT = pytest.mark.parametrize("kept", ["cpu", "disk"])
MEMBERS = 16
BYTES = 4 * (6 * 5 + 5 + 5 * 3 + 3)
X = torch.randn(4, 6)


class Counting(nn.Module):
    """Keeps a count in a buffer, as batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return x + self.get_buffer("calls")


class Moody(nn.Linear):
    """Fails when told to."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("not today")
        return super().forward(x)


def members(count: int = MEMBERS) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(count)]


def offloaded(models: list[nn.Module], kept: str, staying: int = 2, lanes: int = 1, **options: Any) -> ParallelEnsemble:
    """Return an ensemble of which all members but the first few rest elsewhere."""
    devices = tuple(f"cpu:{i % lanes}" for i in range(len(models)))
    return ParallelEnsemble(models, Placement(devices, tuple(range(staying, len(models)))), offload=kept, **options)


def files(folder: Path) -> list[Path]:
    """Return the files in which members rest."""
    return sorted(folder.glob("fusion-ensemble-*.safetensors"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@KEPT
@pytest.mark.parametrize("lanes", [1, 2])
def test_sixteen_members_with_room_for_three_give_the_same_bits(kept: str, lanes: int) -> None:
    models = members()
    expected = ParallelEnsemble(copy.deepcopy(models), [f"cpu:{i % lanes}" for i in range(MEMBERS)])(X)
    ensemble = offloaded(models, kept, lanes=lanes)
    assert all(torch.equal(ensemble(X), expected) for _ in range(3))
    torch.testing.assert_close(expected, EnsembleModule(copy.deepcopy(models))(X))


def test_from_a_bound_the_method_finds_who_must_rest(folder: Path) -> None:
    models = members()
    expected = ParallelEnsemble(copy.deepcopy(models))(X)
    method = SimpleEnsembleAlgorithm(device_map="cpu", max_memory={"cpu": 3 * BYTES}, offload="disk")
    ensemble = method.run(models)
    assert ensemble.placement is not None
    assert ensemble.placement.offloaded == tuple(range(2, MEMBERS))
    assert len(files(folder)) == MEMBERS - 2
    assert torch.equal(ensemble(X), expected)


@KEPT
def test_a_copy_and_a_pickle_give_the_same_and_need_the_original_no_more(kept: str, folder: Path) -> None:
    ensemble = offloaded(members(4), kept)
    expected = ensemble(X)
    copies = [copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))]
    del ensemble
    gc.collect()
    assert files(folder) == []
    assert all(torch.equal(other(X), expected) for other in copies)
    assert len(files(folder)) == (4 if kept == "disk" else 0)


@KEPT
def test_a_copy_shares_no_weights_with_the_original(kept: str) -> None:
    ensemble = offloaded(members(3), kept)
    expected = ensemble(X)
    other = copy.deepcopy(ensemble)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(ensemble(X), expected)
    assert torch.equal(other(X), torch.zeros(4, 3))


@KEPT
def test_state_dicts_are_those_of_any_ensemble_and_go_both_ways_with_the_host(kept: str) -> None:
    ensemble, host = offloaded(members(4), kept), EnsembleModule(members(4))
    ensemble(X)
    assert list(ensemble.state_dict()) == list(host.state_dict())
    ensemble.load_state_dict(host.state_dict())
    expected = ParallelEnsemble(list(host.model_list))(X)
    assert torch.equal(ensemble(X), expected)
    assert torch.equal(ensemble(X), expected)
    host.load_state_dict({key: torch.zeros_like(value) for key, value in host.state_dict().items()})
    host.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(host(X), expected)


@KEPT
def test_weights_that_are_written_to_between_calls_count(kept: str) -> None:
    ensemble = offloaded(members(3), kept, staying=0)
    ensemble(X)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.fill_(0.5)
    plain = members(1)[0]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.fill_(0.5)
    torch.testing.assert_close(ensemble(X), plain(X))
    torch.testing.assert_close(ensemble(X), plain(X))


@KEPT
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_casts_members_at_rest_too(kept: str, dtype: torch.dtype) -> None:
    models = members(4)
    expected = ParallelEnsemble(copy.deepcopy(models)).to(dtype)(X.to(dtype))
    ensemble = offloaded(models, kept)
    ensemble(X)
    ensemble.to(dtype)
    assert {parameter.dtype for parameter in ensemble.parameters()} == {dtype}
    assert torch.equal(ensemble(X.to(dtype)), expected)
    assert {parameter.dtype for parameter in ensemble.parameters()} == {dtype}


@KEPT
def test_buffers_that_a_call_changes_are_kept(kept: str) -> None:
    ensemble = offloaded([Counting(), Counting()], kept, staying=0)
    assert [ensemble(torch.zeros(())).item() for _ in range(3)] == [1, 2, 3]
    assert [member.get_buffer("calls").item() for member in ensemble.model_list] == [3, 3]


@KEPT
def test_running_statistics_move_as_without_offloading(kept: str) -> None:
    models = [nn.BatchNorm1d(6) for _ in range(3)]
    plain = ParallelEnsemble(copy.deepcopy(models))
    ensemble = offloaded(list(models), kept, staying=1)
    for _ in range(3):
        assert torch.equal(ensemble(X), plain(X))
    assert all(torch.equal(a, b) for a, b in zip(ensemble.state_dict().values(), plain.state_dict().values()))


@KEPT
def test_tied_weights_stay_tied(kept: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    expected = model(X)
    ensemble = offloaded([model], kept, staying=0)
    assert torch.equal(ensemble(X), expected)
    assert ensemble.model_list[0][2].weight is ensemble.model_list[0][0].weight
    assert len(ensemble.state_dict()) == 4


@KEPT
def test_views_of_one_memory_and_transposed_weights_are_kept_right(kept: str) -> None:
    memory = torch.randn(3, 6, 6)
    models = [nn.Linear(6, 6, bias=False) for _ in range(3)]
    models[0].weight = nn.Parameter(memory[0])
    models[1].weight = nn.Parameter(memory[1].T)
    twice = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    twice[0].weight, twice[1].weight = nn.Parameter(memory[2]), nn.Parameter(memory[2])  # two tensors, one memory
    plain = [*models[:2], twice]
    expected = ParallelEnsemble(copy.deepcopy(plain))(X)
    torch.testing.assert_close(offloaded(plain, kept, staying=0)(X), expected, rtol=0, atol=1e-6)


@KEPT
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_grad_mode_will_do_first_and_any_other_after_it(kept: str, mode: Any) -> None:
    models = members(3)
    expected = ParallelEnsemble(copy.deepcopy(models))(X)
    with mode():
        ensemble = offloaded(models, kept)
        assert torch.equal(ensemble(X), expected)
    assert torch.equal(ensemble(X), expected)
    assert torch.equal(copy.deepcopy(ensemble)(X), expected)


@KEPT
def test_gradients_reach_the_input_and_members_at_rest_ask_for_none(kept: str) -> None:
    models, x = members(3), X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ParallelEnsemble(copy.deepcopy(models))(x).sum(), x)
    ensemble = offloaded(models, kept, staying=1)
    (gradient,) = torch.autograd.grad(ensemble(x).sum(), x)
    assert torch.equal(gradient, expected)
    assert [any(p.requires_grad for p in member.parameters()) for member in ensemble.model_list] == [True, False, False]


@KEPT
def test_a_member_that_fails_goes_back_to_rest_and_the_ensemble_goes_on(kept: str) -> None:
    models: list[nn.Module] = [nn.Linear(6, 3), Moody(6, 3), nn.Linear(6, 3)]
    ensemble = offloaded(models, kept, staying=0, names=["a", "b", "c"])
    expected = ensemble(X)
    Moody.broken = True
    try:
        with pytest.raises(RuntimeError, match="not today") as error:
            ensemble(X)
    finally:
        Moody.broken = False
    assert "raised by ensemble member 'b' (index 1) on cpu:0" in getattr(error.value, "__notes__", [])
    assert torch.equal(ensemble(X), expected)


@KEPT
def test_two_callers_at_once_get_the_same_bits(kept: str) -> None:
    ensemble = offloaded(members(4), kept, staying=1, lanes=2)
    inputs = [torch.randn(4, 6) for _ in range(2)]
    expected = [ensemble(x) for x in inputs]
    with ThreadPoolExecutor(2) as callers:
        for _ in range(20):
            assert all(map(torch.equal, callers.map(ensemble, inputs), expected))


def test_calls_leave_no_file_open() -> None:
    ensemble = offloaded(members(4), "disk", staying=1)
    ensemble(X)
    before = psutil.Process().num_fds(), len(psutil.Process().memory_maps(grouped=False))
    for _ in range(100):
        ensemble(X)
    after = psutil.Process().num_fds(), len(psutil.Process().memory_maps(grouped=False))
    assert after[0] == before[0]
    assert after[1] <= before[1] + 20  # a leak would leave 300


def test_files_go_with_the_ensemble(folder: Path) -> None:
    ensemble = offloaded(members(4), "disk")
    ensemble(X)
    ensemble.double()  # writes new ones
    assert len(files(folder)) == 2
    del ensemble
    gc.collect()
    assert files(folder) == []


def test_files_go_with_the_process(folder: Path) -> None:
    script = """
    import torch
    from fusion_ensemble_plugin import ParallelEnsemble, Placement
    places = Placement(("cpu:0",) * 2, (0, 1))
    ensemble = ParallelEnsemble([torch.nn.Linear(2, 2) for _ in range(2)], places, offload="disk")
    ensemble(torch.ones(1, 2))
    import pathlib, tempfile
    print(len(list(pathlib.Path(tempfile.gettempdir()).glob("*.safetensors"))))
    raise SystemExit(3)
    """
    command, env = [sys.executable, "-c", textwrap.dedent(script)], {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (3, ["2"]), done.stderr
    assert files(folder) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_that_drops_the_ensemble_leaves_the_files(folder: Path) -> None:
    ensemble = offloaded(members(2), "disk", staying=0)
    child = os.fork()
    if child == 0:
        del ensemble
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(files(folder)) == 2


@pytest.mark.slow
def test_sixteen_members_with_room_for_three_take_the_memory_of_four_at_most(tmp_path: Path) -> None:
    script = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run([sys.executable, script, "offloaded", tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) <= 4
