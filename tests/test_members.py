"""Members keep their places whatever is done to what wraps them; what members share stays shared on one device."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from fusion_bench.models.wrappers.ensemble import EnsembleModule
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.members import Members
from fusion_ensemble_plugin.placement import Placement

# Lightning says that it will move all parameters to one device: it asks for it, and the members stay
pytestmark = pytest.mark.filterwarnings("ignore:The model passed to `Fabric.setup")

PLACES = ["cpu:1", "meta", "cpu:0"]
X = torch.randn(4, 3)


class Normed(nn.Module):
    """Weights, running statistics and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.linear(x))
        return result


def placed() -> ParallelEnsemble:
    """Return an ensemble of which one member is on another device; it is not run."""
    return ParallelEnsemble([Normed() for _ in PLACES], PLACES)


def runnable() -> ParallelEnsemble:
    return ParallelEnsemble([Normed() for _ in range(3)], ["cpu:1", "cpu:0", "cpu:1"]).eval()


def devices(module: nn.Module) -> list[str]:
    """Return the device of each member's weights."""
    ensemble = next(part for part in module.modules() if isinstance(part, ParallelEnsemble))
    found = [{tensor.device.type for tensor in member.state_dict().values()} for member in ensemble.model_list]
    assert all(len(types) == 1 for types in found)
    return [types.pop() for types in found]


def fabric() -> lightning.Fabric:
    return lightning.Fabric(accelerator="cpu", devices=1)


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to device": lambda module: module.to("meta"),
    "to torch device": lambda module: module.to(torch.device("meta")),
    "to tensor": lambda module: module.to(torch.empty(0, device="meta")),
    "cpu": lambda module: module.cpu(),
    "to empty": lambda module: module.to_empty(device="meta"),
    "fabric.to_device": lambda module: fabric().to_device(module),
    "fabric.setup": lambda module: fabric().setup(module),
    "fabric.setup_module": lambda module: fabric().setup_module(module),
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "module apply": lambda module: module.apply(lambda part: part.requires_grad_(False)),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("move", MOVES)
def test_members_stay_in_their_places(move: str, wrapped: bool) -> None:
    module: nn.Module = nn.ModuleDict({"vision_model": placed()}) if wrapped else placed()
    assert devices(module) == ["cpu", "meta", "cpu"]
    moved = MOVES[move](module)
    assert devices(moved) == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize("move", MOVES)
def test_members_compute_the_same_after_it(move: str) -> None:
    ensemble = runnable()
    expected = ensemble(X)
    assert torch.equal(MOVES[move](ensemble)(X), expected)


CASTS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype]] = {
    "half": (lambda module: module.half(), torch.float16),
    "bfloat16": (lambda module: module.bfloat16(), torch.bfloat16),
    "double": (lambda module: module.double(), torch.float64),
    "to dtype": (lambda module: module.to(torch.float64), torch.float64),
    "to device and dtype": (lambda module: module.to("meta", torch.float64), torch.float64),
    "to tensor of a dtype": (lambda module: module.to(torch.empty(0, device="meta", dtype=torch.half)), torch.float16),
    "fabric's precision": (
        lambda module: lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-true").setup(module),
        torch.bfloat16,
    ),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_reach_every_member_in_its_place_and_leave_integers_alone(cast: str) -> None:
    function, dtype = CASTS[cast]
    module = function(nn.Sequential(placed()))
    assert devices(module) == ["cpu", "meta", "cpu"]
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert {b.dtype for n, b in module.named_buffers() if n.endswith("num_batches_tracked")} == {torch.int64}


def test_a_cast_keeps_the_values() -> None:
    ensemble = runnable()
    expected = ensemble.double()(X.double())
    weights = [p.double() for p in ensemble.half().parameters()]
    assert all(torch.allclose(w, p.double(), atol=1e-3) for w, p in zip(weights, ensemble.double().parameters()))
    torch.testing.assert_close(ensemble(X.double()), expected, atol=1e-2, rtol=1e-2)


def test_no_weight_goes_through_the_device_that_it_does_not_go_to() -> None:
    seen: list[int] = []
    members = placed().model_list
    members._apply(lambda tensor: (seen.append(tensor.numel()), tensor.double())[1])
    assert set(seen) == {0}
    assert {parameter.dtype for parameter in members.parameters()} == {torch.float64}


def test_gradients_are_cast_with_their_weights() -> None:
    ensemble = runnable()
    ensemble(X).sum().backward()
    ensemble.double()
    assert {parameter.grad.dtype for parameter in ensemble.parameters() if parameter.grad is not None} == {
        torch.float64
    }


def test_without_a_map_members_move_like_any_module() -> None:
    ensemble = nn.Sequential(ParallelEnsemble([nn.Linear(2, 2), nn.Linear(2, 2)]))
    assert {parameter.device.type for parameter in ensemble.to("meta").parameters()} == {"meta"}


def test_what_a_task_pool_reads_from_the_model_is_told_by_the_placement() -> None:
    ensemble = ParallelEnsemble([nn.Linear(2, 2), nn.Linear(2, 2)], ["meta", "cpu:1"]).half()
    assert (ensemble.device, ensemble.dtype) == (torch.device("meta"), torch.float16)
    assert ParallelEnsemble([nn.Linear(2, 2)]).to("meta").device == torch.device("meta")
    assert ParallelEnsemble([nn.Identity()]).device == torch.device("cpu")


def test_members_are_moved_not_copied() -> None:
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert list(ParallelEnsemble(models, ["cpu:0", "meta"]).model_list) == models


@pytest.mark.parametrize("device_map", [None, "cpu", ["cpu:0", "cpu:1"], "meta"])
def test_one_object_in_two_slots_stays_one_on_one_device(device_map: Any) -> None:
    model = nn.Linear(3, 2)
    ensemble = ParallelEnsemble([model, model], device_map)
    assert ensemble.model_list[0] is ensemble.model_list[1] is model
    assert len(list(ensemble.half().parameters())) == 2
    assert ensemble.dtype == torch.float16
    copied = copy.deepcopy(ensemble)
    assert copied.model_list[0] is copied.model_list[1]


def test_one_object_in_two_slots_on_lanes_gives_its_own_output() -> None:
    model = nn.Linear(3, 2)
    torch.testing.assert_close(ParallelEnsemble([model] * 4, ["cpu:0", "cpu:1", "cpu:2", "cpu:3"])(X), model(X))


def test_one_object_is_copied_where_it_is_on_two_devices() -> None:
    model = nn.Linear(3, 2)
    members = ParallelEnsemble([model] * 3, ["cpu:0", "meta", "cpu:1"]).model_list
    assert [member.weight.device.type for member in members] == ["cpu", "meta", "cpu"]
    assert members[0] is members[2]


def test_members_that_share_a_layer_share_it_on_one_device_and_not_on_two() -> None:
    layer = nn.Linear(3, 3)
    one, two, three = (nn.Sequential(layer, nn.Linear(3, 2)) for _ in range(3))
    expected = two(X)
    members = ParallelEnsemble([one, two, three], ["cpu:0", "cpu:1", "meta"]).model_list
    assert [member[0].weight.device.type for member in members] == ["cpu", "cpu", "meta"]
    assert members[0][0] is members[1][0] is layer
    assert torch.equal(members[1](X), expected)


def test_members_that_rest_elsewhere_share_nothing() -> None:
    model = nn.Linear(3, 2)
    ensemble = ParallelEnsemble([model] * 3, Placement(("cpu:0",) * 3, (1, 2)), offload="disk")
    assert len({id(member) for member in ensemble.model_list}) == 3
    torch.testing.assert_close(ensemble(X), model(X))


def test_a_failed_placement_leaves_an_empty_list_to_the_errors_frame() -> None:
    members = Members.__new__(Members)

    def models() -> Any:
        yield nn.Linear(2, 2)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        members.__init__(models(), Placement(("cpu:0", "cpu:0")))  # type: ignore[misc]
    assert len(members) == 0


@pytest.mark.parametrize("device_map", [None, ["cpu:0", "cpu:1", "cpu:0"]])
def test_checkpoints_go_to_and_from_the_hosts_ensemble_through_a_file(device_map: Any) -> None:
    ours = ParallelEnsemble([Normed() for _ in range(3)], device_map, names=["a.b", "keys", "c"]).eval()
    hosts = EnsembleModule([Normed() for _ in range(3)]).eval()
    assert list(ours.state_dict()) == list(hosts.state_dict())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    hosts.load_state_dict(torch.load(file))
    torch.testing.assert_close(hosts(X), ours(X))
    others = EnsembleModule([Normed() for _ in range(3)]).eval()
    ours.load_state_dict(others.state_dict())
    torch.testing.assert_close(ours(X), others(X))


def test_a_checkpoint_of_another_number_of_members_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*model_list\.2\.linear\.weight"):
        runnable().load_state_dict(EnsembleModule([Normed() for _ in range(2)]).state_dict())


def test_a_slice_of_members_is_a_list_of_them_that_places_none() -> None:
    ensemble = ParallelEnsemble([nn.Linear(2, 2) for _ in range(3)], ["cpu:0", "cpu:1", "cpu:0"])
    part = ensemble.model_list[1:]
    assert list(part) == list(ensemble.model_list)[1:]
    assert part.placement is None
