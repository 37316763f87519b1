"""What only an accelerator can show: copies, streams, memory, members on a GPU and the CPU at once."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.placement import Placement

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

GPU = "cuda:0"
EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "threads", "stacked"])
MAPS = pytest.mark.parametrize(
    "device_map", [GPU, [GPU, "cpu:0", GPU, "cpu:0"], ["cpu:1", GPU, "cpu:0", GPU]], ids=["GPU", "both", "CPU first"]
)
WIDTH = 1024
BYTES = 4 * WIDTH * WIDTH


class Member(nn.Module):
    """Attention and a linear layer; the output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden, _ = self.attention(x, x, x, need_weights=False)
        return {"logits": self.head(hidden[:, 0]), "hidden": [hidden]}


class Witness(nn.Module):
    """Notes the stream, the device and the thread that it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")
        self.seen = [torch.cuda.current_stream(), torch.cuda.current_device(), *autocast, threading.get_ident()]
        return x * self.weight


class Slow(nn.Module):
    """Keeps the GPU busy before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            torch.cuda._sleep(20_000_000)  # cycles: some milliseconds
        return x * self.weight


def wide(count: int) -> list[nn.Module]:
    return [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)]


def allocated() -> int:
    """Return the bytes of all tensors on the GPU, without what cuBLAS keeps for each thread and stream."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(GPU)


def oracle(members: list[nn.Module], x: Tensor) -> Tensor:
    """Return the mean of the members' logits, by a loop in float64 on the CPU."""
    outputs = [copy.deepcopy(member).cpu().double()(x.cpu().double()) for member in members]
    return torch.stack([output["logits"] if isinstance(output, dict) else output for output in outputs]).mean(0)


@EXECUTORS
@MAPS
@pytest.mark.parametrize("home", ["cpu", GPU])
def test_members_on_a_gpu_and_the_cpu_give_the_float64_mean(executor: str, device_map: Any, home: str) -> None:
    members, x = [Member().eval() for _ in range(4)], torch.randn(5, 7, 8)
    ensemble = ParallelEnsemble(copy.deepcopy(members), device_map, executor=executor)
    first = torch.device("cpu" if device_map[0].startswith("cpu") else GPU)
    with torch.no_grad():
        for _ in range(2):
            result = ensemble(x.to(home))
            assert result["logits"].device == (torch.device(GPU) if home == GPU else first)
            assert result["hidden"][0].device == result["logits"].device
            torch.testing.assert_close(result["logits"].cpu().double(), oracle(members, x), atol=1e-4, rtol=1e-4)
    ensemble.close()


@MAPS
@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_gradients_come_back_from_every_device(executor: str, device_map: Any) -> None:
    members, x = wide(4), torch.randn(3, WIDTH, requires_grad=True)
    ensemble = ParallelEnsemble(copy.deepcopy(members), device_map, executor=executor)
    ensemble(x).square().sum().backward()
    given, x.grad = x.grad, None
    torch.stack([member(x) for member in members]).mean(0).square().sum().backward()
    torch.testing.assert_close(given, x.grad, atol=1e-3, rtol=1e-3)
    for ours, theirs in zip(ensemble.parameters(), nn.ModuleList(members).parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=1e-3, rtol=1e-3)
    ensemble.close()


def test_auto_takes_the_gpu_and_a_wrapper_that_goes_elsewhere_leaves_members_there() -> None:
    ensemble = SimpleEnsembleAlgorithm(device_map="auto").run(wide(2))
    assert ensemble.placement is not None
    assert set(ensemble.placement.devices) <= {f"cuda:{i}" for i in range(torch.cuda.device_count())}
    nn.Sequential(ensemble).cpu()
    assert {parameter.device.type for parameter in ensemble.parameters()} == {"cuda"}


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_the_callers_stream_and_autocast_hold_for_members(executor: str) -> None:
    members, stream = [Witness(), Witness()], torch.cuda.Stream()
    ensemble, x = ParallelEnsemble(members, [GPU, "cpu:0"], executor=executor), torch.ones(2, device=GPU)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream), torch.autocast("cuda", torch.bfloat16):
        ensemble(x)
    assert [member.seen[:4] for member in members] == [[stream, torch.cuda.current_device(), True, False]] * 2
    assert (threading.get_ident() in {member.seen[4] for member in members}) == (executor == "sequential")
    with torch.no_grad():
        ensemble(x)
    assert [member.seen[0] for member in members] == [torch.cuda.current_stream()] * 2
    ensemble.close()


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_members_see_what_the_callers_stream_has_yet_to_compute(executor: str) -> None:
    ensemble, stream = ParallelEnsemble([Slow(), Slow()], [GPU, "cpu:0"], executor=executor), torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for number in range(1, 6):
            x = torch.zeros(2**20, device=GPU)
            torch.cuda._sleep(20_000_000)
            x += number
            assert ensemble(x).unique().tolist() == [number]
    ensemble.close()


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_a_result_on_the_cpu_has_arrived_when_the_forward_returns(executor: str) -> None:
    ensemble = ParallelEnsemble([Slow(), Slow()], [GPU, "cpu:0"], executor=executor, output_device="cpu")
    with torch.no_grad():
        for number in range(1, 6):
            result = ensemble(torch.full((2**20,), float(number)))
            assert result.device.type == "cpu"
            assert result.unique().tolist() == [number]
    ensemble.close()


def copies(call: Callable[[], Any]) -> list[str]:
    """Return the names of the copies between host and device in a call, after one that is not looked at."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sorted(event.name for event in profiler.events() if event.name.startswith(("Memcpy HtoD", "Memcpy DtoH")))


@pytest.mark.parametrize("pinned", [True, False])
def test_an_input_goes_to_a_gpu_once_however_many_members_are_there(pinned: bool) -> None:
    ensemble, x = ParallelEnsemble(wide(6), GPU, executor="threads"), torch.randn(3, WIDTH)
    x = x.pin_memory() if pinned else x
    with torch.no_grad():
        assert copies(lambda: ensemble(x)) == [f"Memcpy HtoD ({'Pinned' if pinned else 'Pageable'} -> Device)"]
    ensemble.close()


def test_one_partial_result_travels_for_two_devices() -> None:
    ensemble, x = ParallelEnsemble(wide(6), [GPU, "cpu:0"] * 3), torch.randn(3, WIDTH, device=GPU)
    with torch.no_grad():  # the input goes to the CPU, the CPU's members' sum to the GPU
        assert [name[:11] for name in copies(lambda: ensemble(x))] == ["Memcpy DtoH", "Memcpy HtoD"]
    ensemble.close()


@EXECUTORS
def test_stacked_and_other_executors_agree_in_half_precision(executor: str) -> None:
    members, x = [Member().eval() for _ in range(4)], torch.randn(5, 7, 8)
    ensemble = ParallelEnsemble(copy.deepcopy(members), GPU, executor=executor).half()
    with torch.no_grad():
        logits = ensemble(x.half())["logits"]
        assert logits.dtype == torch.float16
        torch.testing.assert_close(logits.cpu().double(), oracle(members, x), atol=1e-2, rtol=1e-2)
    ensemble.close()


@pytest.mark.parametrize("kept", ["cpu", "disk"])
def test_sixteen_members_with_room_for_three_give_the_same_bits_in_the_memory_of_four(kept: str) -> None:
    models, x = wide(16), torch.randn(3, WIDTH, device=GPU)
    with torch.no_grad():
        together = ParallelEnsemble(copy.deepcopy(models), GPU)
        expected = together(x)
        del together
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(GPU)
        ensemble = ParallelEnsemble(models, Placement((GPU,) * 16, tuple(range(1, 16))), offload=kept)
        ensemble(x)
        torch.cuda.reset_peak_memory_stats(GPU)
        for _ in range(3):
            assert torch.equal(ensemble(x), expected)
        assert torch.cuda.max_memory_allocated(GPU) - before <= 4 * BYTES
    if kept == "cpu":
        assert all(parameter.is_pinned() for member in ensemble.model_list[1:] for parameter in member.parameters())


def test_weights_are_copied_while_the_member_before_computes() -> None:
    models, x = [nn.Sequential(Slow(), *wide(1)) for _ in range(4)], torch.randn(3, WIDTH, device=GPU)
    ensemble = ParallelEnsemble(models, Placement((GPU,) * 4, (0, 1, 2, 3)), offload="cpu")
    with torch.no_grad():
        ensemble(x)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            ensemble(x)
            torch.cuda.synchronize()
    events = profiler.events()
    weights = [event.time_range for event in events if event.name == "Memcpy HtoD (Pinned -> Device)"]
    sleeps = [event.time_range for event in events if "spin_kernel" in event.name]
    assert len(sleeps) == 4
    assert any(copied.start < sleep.end and sleep.start < copied.end for copied in weights for sleep in sleeps)


@EXECUTORS
def test_no_memory_of_the_gpu_is_held_by_forwards_errors_or_a_deleted_ensemble(executor: str) -> None:
    empty = allocated()
    ensemble, x, wrong = ParallelEnsemble(wide(4), GPU, executor=executor), torch.ones(3, WIDTH), torch.ones(3, 7)
    for _ in range(3):
        ensemble(x)
    used = allocated()
    for _ in range(300):
        ensemble(x)
        with pytest.raises(RuntimeError):
            ensemble(wrong)
    assert allocated() == used
    ensemble.close()
    del ensemble
    assert allocated() == empty


def test_stacking_takes_no_more_memory_than_the_members_did() -> None:
    before = allocated()
    ensemble, x = ParallelEnsemble(wide(16), GPU, executor="stacked"), torch.ones(1, WIDTH, device=GPU)
    with torch.no_grad():
        ensemble(x)
    assert allocated() - before - x.nbytes <= 1.1 * 16 * BYTES


def test_autocast_is_of_each_members_own_device() -> None:
    members = [Witness(), Witness()]
    ensemble = ParallelEnsemble(members, [GPU, "cpu:0"], autocast=torch.bfloat16)
    with torch.no_grad():
        ensemble(torch.ones(2))
    ensemble.close()
    assert [member.seen[2:4] for member in members] == [[True, False], [False, True]]


@pytest.mark.parametrize("target", ["cpu", GPU])
def test_a_state_dict_loads_into_members_on_a_gpu(target: str) -> None:
    theirs, x = wide(2), torch.randn(3, WIDTH)
    ensemble = ParallelEnsemble(wide(2), [GPU, "cpu:0"])
    state = nn.ModuleDict({"model_list": nn.ModuleList(copy.deepcopy(theirs)).to(target)}).state_dict()
    ensemble.load_state_dict(state)
    with torch.no_grad():
        result = ensemble(x)
    ensemble.close()
    torch.testing.assert_close(result.cpu().double(), oracle(theirs, x), atol=1e-4, rtol=1e-4)
