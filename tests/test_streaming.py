"""Weights visit a device: the next member's are on their way while this one computes, and go when it is done.

What only a GPU can show (copies that do not block, streams, two sets of weights at most) is in test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.members import Members
from fusion_ensemble_plugin.offload import OffloadedMember
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.streaming import Visit, WeightStream

X = torch.randn(4, 3)


class ToAnotherMemory(WeightStream):
    """A stream whose device is the CPU, but other memory there; writes down what it does."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(torch.device("cpu"))
        self.events = events
        self.there: list[int] = []

    def send(self, weights: Mapping[str, Tensor]) -> Visit:
        visit = super().send({name: tensor.clone() for name, tensor in weights.items()})
        self.events.append(f"send {int(weights['number'])}")
        self.there += [tensor.data_ptr() for tensor in visit.weights.values()]
        return visit

    def end(self, visit: Visit) -> None:
        self.events.append(f"end {int(visit.weights['number'])}")
        super().end(visit)


class Numbered(nn.Linear):
    """Writes down that it computes, and where its weights are."""

    def __init__(self, number: int, stream: ToAnotherMemory) -> None:
        super().__init__(3, 3)
        self.register_buffer("number", torch.tensor(number))
        self.stream = [stream]
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        self.stream[0].events.append(f"run {int(self.get_buffer('number'))}")
        if self.broken:
            raise RuntimeError("not today")
        assert self.weight.data_ptr() in self.stream[0].there
        return super().forward(x)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToAnotherMemory]:
    """The stream that members on the CPU stand in line for, as those on an accelerator do."""
    stream = ToAnotherMemory([])
    monkeypatch.setattr(Members, "_stream", lambda members, index: stream)
    return (yield stream)


def ensemble_of(stream: ToAnotherMemory, count: int = 3) -> ParallelEnsemble:
    models = [Numbered(i, stream) for i in range(count)]
    return ParallelEnsemble(models, Placement(("cpu:0",) * count, tuple(range(count))), offload="cpu")


def test_the_next_members_weights_are_sent_before_this_one_computes(stream: ToAnotherMemory) -> None:
    ensemble_of(stream)(X)
    one, two, three = ["send 0", "send 1", "run 0", "end 0"], ["send 2", "run 1", "end 1"], ["run 2", "end 2"]
    assert stream.events == [*one, *two, *three]


def test_members_compute_with_the_weights_that_were_sent_and_are_at_rest_after(stream: ToAnotherMemory) -> None:
    ensemble = ensemble_of(stream)
    resting = [parameter.data_ptr() for parameter in ensemble.parameters()]
    expected = torch.stack([nn.functional.linear(X, m.weight, m.bias) for m in ensemble.model_list]).mean(0)  # type: ignore[arg-type]
    torch.testing.assert_close(ensemble(X), expected)
    assert [parameter.data_ptr() for parameter in ensemble.parameters()] == resting
    assert not set(resting) & set(stream.there)


def test_after_an_error_the_weights_that_wait_are_used_not_sent_again(stream: ToAnotherMemory) -> None:
    ensemble = ensemble_of(stream)
    expected = ensemble(X)
    first = ensemble.model_list[0]
    assert isinstance(first, Numbered)
    first.broken = True
    with pytest.raises(RuntimeError, match="not today"):
        ensemble(X)
    first.broken = False
    stream.events.clear()
    assert torch.equal(ensemble(X), expected)
    assert sorted(event for event in stream.events if event.startswith("send")) == ["send 0", "send 2"]


def test_weights_that_wait_are_sent_anew_when_the_member_was_written_to(stream: ToAnotherMemory) -> None:
    member = OffloadedMember(Numbered(0, stream), "cpu")
    member.prefetch(stream)
    with torch.no_grad():
        member.member.get_parameter("weight").fill_(2.0)
    with member.at_work(stream) as module:
        assert module.get_parameter("weight").unique().tolist() == [2.0]
    assert stream.events == ["send 0", "send 0", "end 0"]


def test_what_a_visiting_member_writes_to_its_buffers_comes_home(stream: ToAnotherMemory) -> None:
    member = OffloadedMember(Numbered(7, stream), "cpu")
    with member.at_work(stream) as module:
        module.get_buffer("number").add_(1)
    assert member.member.get_buffer("number").item() == 8


def test_where_no_copy_can_run_beside_the_computation_it_is_made_at_once() -> None:
    stream = WeightStream(torch.device("meta"))
    visit = stream.send({"w": torch.ones(2)})
    assert (visit.weights["w"].device.type, visit.ready) == ("meta", None)
    stream.begin(visit)
    stream.end(visit)
    assert visit.weights == {}
