"""Members run as one: the same numbers, the traps, and memory that moves into the stack instead of being doubled."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.stacked import Stack


def mlps(count: int, width: int = 8) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3)).eval() for _ in range(count)]


def gpt2s(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=17, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return [GPT2LMHeadModel(config).eval() for _ in range(count)]


def stacked(members: list[nn.Module], **options: Any) -> ParallelEnsemble:
    return ParallelEnsemble(members, "cpu", executor="stacked", **options)


def mean(members: list[nn.Module], x: Tensor) -> Tensor:
    return sum(member(x) for member in members) / len(members)


@torch.no_grad()
def test_tied_weights_stay_tied() -> None:
    members, tokens = gpt2s(3), torch.randint(17, (2, 7))
    expected = sum(copy.deepcopy(m).double()(tokens).logits for m in members) / 3
    ensemble = stacked(members)
    torch.testing.assert_close(ensemble(tokens).logits.double(), expected, atol=1e-5, rtol=1e-5)
    for member in ensemble.model_list:
        assert member.lm_head.weight is member.transformer.wte.weight


class Times(nn.Module):
    """A member whose Python attribute decides what it computes."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.layer(x)


def test_members_with_different_attributes_are_refused_when_the_ensemble_is_built() -> None:
    with pytest.raises(ValueError, match=r"'0' and '1' differ: factor is 1.0 in one and 2.0 in the other"):
        stacked([Times(1.0), Times(2.0)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m[1].train(), "training is False in one and True in the other"),
        (lambda m: m.__setitem__(1, nn.Linear(8, 3)), "differ"),
        (lambda m: m[1].register_buffer("extra", torch.zeros(1)), "buffers are"),
        (lambda m: m[1].__setitem__(0, m[0][0]), "share 0.weight"),
    ],
    ids=["training mode", "architecture", "buffers", "a shared layer"],
)
def test_members_that_are_not_alike_are_refused_with_the_reason(change: Any, told: str) -> None:
    members = mlps(3)
    change(members)
    with pytest.raises(ValueError, match=told):
        stacked(members)


@torch.no_grad()
def test_an_attribute_changed_later_is_noticed_when_the_members_are_stacked_anew() -> None:
    ensemble = stacked([Times(1.0), Times(1.0)])
    ensemble(torch.ones(1, 2))
    ensemble.model_list[1].factor = 2.0
    ensemble.double()
    with pytest.raises(ValueError, match=r"factor is 1\.0 in one and 2\.0"):
        ensemble(torch.ones(1, 2, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.double(),
        lambda e: e.model_list[1][0].weight.mul_(3),
        lambda e: e.load_state_dict({k: v + 1 for k, v in e.state_dict().items()}),
        lambda e: e.load_state_dict({k: v + 1 for k, v in e.state_dict().items()}, assign=True),
        lambda e: setattr(e.model_list[2][0], "bias", nn.Parameter(torch.ones(8))),
    ],
    ids=["dtype", "in place", "checkpoint", "checkpoint, assigned", "another parameter"],
)
def test_what_is_changed_after_stacking_counts_at_once(change: Any) -> None:
    ensemble = stacked(mlps(3))
    ensemble(torch.ones(2, 8))
    change(ensemble)
    x = torch.randn(4, 8, dtype=ensemble.dtype)
    expected = mean([copy.deepcopy(member) for member in ensemble.model_list], x)
    torch.testing.assert_close(ensemble(x), expected)


@torch.no_grad()
def test_the_checkpoint_of_stacked_members_is_that_of_single_ones() -> None:
    members = mlps(3)
    before = {k: v.clone() for k, v in ParallelEnsemble(members).state_dict().items()}
    ensemble = stacked(members)
    ensemble(torch.ones(2, 8))
    after = ensemble.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def held_bytes() -> int:
    """Return the bytes of all large tensors' memory, each counted once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    tensors = [t for t in tensors if t.layout is torch.strided and t.device.type == "cpu" and t.numel() >= 2**20]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@torch.no_grad()
def test_weights_move_into_the_stack_and_are_not_doubled() -> None:
    members = [nn.Linear(1024, 1024, bias=False).eval() for _ in range(16)]  # 64 MiB together
    ensemble, x = stacked(members), torch.ones(1, 1024)
    before = held_bytes()
    ensemble(x)
    assert held_bytes() - before <= 2**20
    start = min(member.weight.data_ptr() for member in members)
    assert sorted(member.weight.data_ptr() - start for member in members) == [i * 4 * 2**20 for i in range(16)]


def test_dropout_is_drawn_for_each_member_and_batch_norms_buffers_are_its_own() -> None:
    torch.manual_seed(0)
    members = [nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.5)).train() for _ in range(2)]
    seen = Stack(members, ["a", "b"])(torch.randn(64, 64))
    assert not torch.equal(seen[0] == 0, seen[1] == 0)
    x = torch.randn(64, 64)
    single = copy.deepcopy(members[0])
    single(x)
    Stack(members, ["a", "b"])(x)
    torch.testing.assert_close(members[0][0].running_mean, single[0].running_mean)


@torch.no_grad()
def test_members_on_several_lanes_are_one_stack_a_lane() -> None:
    members = mlps(5)
    expected = mean([copy.deepcopy(m) for m in members], x := torch.randn(4, 8))
    ensemble = ParallelEnsemble(members, ["cpu:0", "cpu:1", "cpu:0", "cpu:1", "cpu:1"], executor="stacked")
    torch.testing.assert_close(ensemble(x), expected)
    ours = [
        [m[0].weight.untyped_storage().data_ptr() for m in (members[i] for i in lane)] for lane in ([0, 2], [1, 3, 4])
    ]
    assert [len(set(lane)) for lane in ours] == [1, 1]
    assert ours[0][0] != ours[1][0]


@torch.no_grad()
def test_the_training_mode_counts_at_once() -> None:
    members, x = [nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)).eval() for _ in range(3)], torch.randn(5, 8)
    ensemble = stacked(copy.deepcopy(members))
    for training in (False, True, False):
        ensemble.train(training)
        expected = mean([member.train(training) for member in members], x)
        torch.testing.assert_close(ensemble(x), expected)
        for ours, theirs in zip(ensemble.buffers(), nn.ModuleList(members).buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_hook_that_one_member_gets_is_noticed_at_once() -> None:
    ensemble, x = stacked(mlps(3)), torch.ones(1, 8)
    expected = ensemble(x)
    hook = ensemble.model_list[1][0].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match=r"'0' and '1' differ: 0\.forward_hooks"):
        ensemble(x)
    hook.remove()
    assert torch.equal(ensemble(x), expected)


@torch.no_grad()
def test_members_are_stacked_once() -> None:
    ensemble = stacked(mlps(3))
    places = []
    for size in (2, 2, 5):
        ensemble(torch.ones(size, 8))
        places.append([parameter.data_ptr() for parameter in ensemble.parameters()])
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_mode_will_do_first_and_gradients_flow_after_it(mode: Any) -> None:
    members, x = mlps(3), torch.randn(4, 8)
    ensemble = stacked(copy.deepcopy(members))
    with mode():
        ensemble(x)
    assert not any(parameter.is_inference() for parameter in ensemble.parameters())
    ensemble(x).square().sum().backward()
    mean(members, x).square().sum().backward()
    for ours, theirs in zip(ensemble.parameters(), nn.ModuleList(members).parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@torch.no_grad()
def test_a_pickle_holds_each_members_weights_and_not_the_whole_stack() -> None:
    ensemble, x = stacked(mlps(8, width=64)), torch.ones(1, 64)
    size = len(pickle.dumps(ensemble))
    expected = ensemble(x)
    assert len(pickle.dumps(ensemble)) <= 1.1 * size
    assert torch.equal(ensemble(x), expected)


def test_a_pickle_made_in_inference_mode_leaves_weights_that_can_be_trained() -> None:
    ensemble, x = stacked(mlps(3)), torch.randn(4, 8)
    with torch.inference_mode():
        ensemble(x)
        pickle.dumps(ensemble)
    assert not any(parameter.is_inference() for parameter in ensemble.parameters())
    ensemble(x).sum().backward()
    assert all(parameter.grad is not None for parameter in ensemble.parameters())


def test_a_training_step_reaches_the_stack() -> None:
    members, x = mlps(3), torch.randn(4, 8)
    ensemble = stacked(copy.deepcopy(members))
    for model in (ensemble, nn.ModuleList(members)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            (ensemble(x) if model is ensemble else mean(members, x)).square().sum().backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x), mean(members, x))


@torch.no_grad()
def test_auto_does_not_stack() -> None:
    members = mlps(3)
    ensemble = ParallelEnsemble(members, "cpu", executor="auto")
    ensemble(torch.ones(1, 8))
    assert len({member[0].weight.untyped_storage().data_ptr() for member in members}) == 3


def test_members_that_rest_elsewhere_can_not_be_stacked() -> None:
    with pytest.raises(ValueError, match="executor=stacked keeps all weights on the device"):
        ParallelEnsemble(mlps(3), Placement(("cpu:0",) * 3, (1, 2)), executor="stacked", offload="disk")


def test_members_on_lanes_that_differ_are_not_compared() -> None:
    members = [Times(1.0), Times(2.0), Times(1.0)]
    ensemble = ParallelEnsemble(members, ["cpu:0", "cpu:1", "cpu:0"], executor="stacked")
    x = torch.randn(4, 2)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x), mean([copy.deepcopy(member) for member in members], x))
    ensemble.close()


def test_members_of_weight_0_need_not_be_alike() -> None:
    members, x = [Times(1.0), Times(2.0), Times(1.0)], torch.randn(4, 2)
    with torch.no_grad():
        result = stacked(members, weights=[1, 0, 3])(x)
        torch.testing.assert_close(result, (members[0](x) + 3 * members[2](x)) / 4)


@torch.no_grad()
def test_an_error_in_a_stack_names_its_members() -> None:
    with pytest.raises(RuntimeError) as error:
        stacked(mlps(2), names=["svhn", "dtd"])(torch.ones(1, 7))
    assert "raised by ensemble members 'svhn', 'dtd', run as one on cpu:0" in getattr(error.value, "__notes__", [])


@torch.no_grad()
def test_what_is_not_their_forward_runs_member_by_member() -> None:
    members, x = mlps(3), torch.randn(4, 8)
    ensemble = stacked(copy.deepcopy(members))
    ensemble(x)
    result = ensemble.run_members(lambda index, member, args, kwargs: (index + 1) * member(*args), ((x,), {}))
    torch.testing.assert_close(result, sum((index + 1) * member(x) for index, member in enumerate(members)) / 3)
