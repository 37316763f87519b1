"""Transforms of ``torch.func`` and torch's modes hold in one thread: members run there, and give the right values."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fusion_ensemble_plugin import ParallelEnsemble

# torch's own rules for forward derivatives are written so
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

WAYS = pytest.mark.parametrize(
    ("executor", "device_map"),
    [
        ("sequential", None),
        ("sequential", "cpu"),
        ("threads", ["cpu:0", "cpu:1", "cpu:0"]),
        ("stacked", "cpu"),
        ("stacked", ["cpu:0", "cpu:1", "cpu:0"]),
    ],
)
X = torch.randn(4, 3)


def models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(3)]


class Mean(nn.Module):
    """The mean of the models' outputs by a loop: what an ensemble is to give."""

    def __init__(self) -> None:
        super().__init__()
        self.model_list = nn.ModuleList(models())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = sum(model(x) for model in self.model_list) / len(self.model_list)
        return result


def ensemble(executor: str, device_map: Any) -> ParallelEnsemble:
    """Return an ensemble that has run once, so that its workers are there."""
    made = ParallelEnsemble(models(), device_map, executor=executor)
    with torch.no_grad():
        made(X)
    return made


TRANSFORMS = {
    "vmap": lambda model: torch.func.vmap(model)(X),
    "vmap, no gradients": torch.no_grad()(lambda model: torch.func.vmap(model)(X)),
    "jacobian": lambda model: torch.func.jacrev(model)(X),
    "jacobian, forward": lambda model: torch.func.jacfwd(model)(X),
    "jvp": lambda model: torch.func.jvp(model, (X,), (X,))[1],
    "hessian": lambda model: torch.func.hessian(lambda x: model(x).square().sum())(X),
    "gradients a sample": lambda model: torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(X),
}


@WAYS
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_the_ensemble_is_that_of_the_mean(name: str, executor: str, device_map: Any) -> None:
    ours = ensemble(executor, device_map)
    torch.testing.assert_close(TRANSFORMS[name](ours), TRANSFORMS[name](Mean()), atol=1e-5, rtol=1e-5)
    ours.close()


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_gradients_of_a_functional_call_reach_every_member(executor: str) -> None:
    ours = ensemble(executor, ["cpu:0", "cpu:1", "cpu:0"])

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return torch.func.grad(lambda w: torch.func.functional_call(model, w, X).square().sum())(weights)

    found, expected = gradients(ours), gradients(Mean())
    ours.close()
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@WAYS
def test_operations_are_counted_wherever_members_are(executor: str, device_map: Any) -> None:
    counts = []
    for model in (ensemble(executor, device_map), Mean()):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(X)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_fake_tensors_go_through_lanes() -> None:
    ours = ensemble("threads", ["cpu:0", "cpu:1", "cpu:0"])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert type(ours(torch.empty(7, 3))).__name__ == "FakeTensor"
    assert ours(X).shape == (4, 2)
    ours.close()


def test_a_mode_brings_members_into_the_callers_thread_and_the_default_device_does_not() -> None:
    seen: list[bool] = []
    members = [nn.Linear(3, 2), nn.Linear(3, 2)]
    for member in members:
        member.register_forward_hook(lambda *_: seen.append(threading.current_thread() is threading.main_thread()))
    ours = ParallelEnsemble(members, ["cpu:0", "cpu:1"])
    for mode in (torch.device("cpu"), Unchanged(), torch.device("meta")):
        with mode:
            ours(X)
    ours.close()
    assert seen == [False, False, True, True, False, False]


class Unchanged(TorchFunctionMode):
    """Leaves every function as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))
