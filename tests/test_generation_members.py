"""What ensemble decoding does with its members: at the same time, each in its place, one cache each, nothing kept."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from language_models import FAMILIES, PAD, VOCABULARY, gpt2, prompts, t5
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from fusion_ensemble_plugin import ParallelEnsemble
from fusion_ensemble_plugin.generation.caches import MemberCaches
from fusion_ensemble_plugin.generation.generator import EnsembleGenerator
from fusion_ensemble_plugin.generation.scores import MembersLevel
from fusion_ensemble_plugin.placement import Placement
from fusion_ensemble_plugin.plugins import make_reducer

FOUR_LANES = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]


def decode(model: Any, **options: Any) -> Tensor:
    tokens: Tensor = model.generate(**{"max_new_tokens": 5, "pad_token_id": PAD, **options})
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_members_meet_at_a_barrier_at_every_step(family: str) -> None:
    members = [FAMILIES[family](seed) for seed in range(4)]
    expected = decode(ParallelEnsemble(copy.deepcopy(members)), **prompts(), min_new_tokens=5)
    barrier, steps = threading.Barrier(4, timeout=60), []
    for member in members:
        member.register_forward_pre_hook(lambda *_: steps.append(barrier.wait()))
    assert torch.equal(decode(ParallelEnsemble(members, FOUR_LANES), **prompts(), min_new_tokens=5), expected)
    assert sorted(steps) == sorted(5 * [0, 1, 2, 3])


def test_encoders_meet_at_a_barrier_and_run_once_each() -> None:
    members, runs = [t5(seed) for seed in range(4)], []
    barrier = threading.Barrier(4, timeout=60)
    for index, member in enumerate(members):
        member.encoder.register_forward_pre_hook(lambda *_, index=index: runs.append((barrier.wait(), index)))
    decode(ParallelEnsemble(members, FOUR_LANES), **prompts(), num_beams=2)
    assert sorted(index for _, index in runs) == [0, 1, 2, 3]


def test_decoder_only_members_compute_the_scores_of_the_last_position_alone() -> None:
    member, shapes = gpt2(0), []
    member.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    decode(ParallelEnsemble([member]), **prompts())
    assert set(shapes) == {(3, 1, VOCABULARY)}


class Layer(DynamicLayer):
    """One that begins with a slice of what it gets: ``torch.tensor`` wants a real GPU."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states.narrow(2, 0, 0), value_states.narrow(2, 0, 0)


class Recurrent(PreTrainedModel, GenerationMixin):
    """A language model without attention, which runs on fake devices: it scores the mean of all embeddings so far."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.post_init()

    def forward(
        self, input_ids: Tensor, past_key_values: Cache, use_cache: bool = True, **_: Any
    ) -> CausalLMOutputWithPast:
        embedded = self.embedding(input_ids).unsqueeze(1)
        seen, _ = past_key_values.update(embedded, embedded, 0)
        return CausalLMOutputWithPast(logits=self.head(seen.mean((1, 2))).unsqueeze(1), past_key_values=past_key_values)


def recurrent() -> Recurrent:
    return Recurrent(PretrainedConfig(vocab_size=VOCABULARY, num_hidden_layers=1, is_encoder_decoder=False))


@pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1"])
def test_members_on_two_gpus_never_meet_a_tensor_of_the_other(home: str) -> None:
    members = [recurrent() for _ in range(3)]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        gpus = Placement(("cuda:0", "cuda:1", "cuda:0"))
        ensemble = ParallelEnsemble(members, gpus, executor="sequential")  # the mode is not for several threads
        reducer = MembersLevel(make_reducer("probability_mean"))
        generator = EnsembleGenerator(ensemble, dict(enumerate(ensemble.model_list)), reducer, torch.device(home))
        fresh = [Cache(layer_class_to_replicate=Layer) for _ in range(3)]
        caches = MemberCaches({index: {"past_key_values": cache} for index, cache in enumerate(fresh)})
        ids = torch.ones(4, 7, dtype=torch.long, device=home)
        first = generator(ids, attention_mask=torch.ones_like(ids), past_key_values=caches, use_cache=True)
        caches.reorder_cache(torch.tensor([1, 0, 3, 2], device=home))
        second = generator(
            torch.ones(4, 1, dtype=torch.long, device=home), past_key_values=first.past_key_values, use_cache=True
        )
    assert first.logits.shape == second.logits.shape == (4, 1, VOCABULARY)
    assert second.logits.device == torch.device("cuda:0" if home == "cpu" else home)
    held = [cache.layers[0].keys for cache in fresh]
    assert [str(keys.device) for keys in held] == ["cuda:0", "cuda:1", "cuda:0"]
    assert {tuple(keys.shape) for keys in held} == {(4, 1, 8, 8)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("family", FAMILIES)
def test_members_on_a_gpu_and_the_cpu_decode_as_on_the_cpu(family: str, way: dict[str, Any]) -> None:
    members = [FAMILIES[family](seed).double() for seed in (1, 2)]
    expected = decode(ParallelEnsemble(copy.deepcopy(members)), **prompts(), **way)
    ensemble = ParallelEnsemble(members, ["cuda:0", "cpu:0"])
    assert torch.equal(decode(ensemble, **prompts(), **way), expected)
    there = {name: tensor.to("cuda:0") for name, tensor in prompts().items()}
    assert torch.equal(decode(ensemble, **there, **way).cpu(), expected)


def caches_seen(members: list[Any]) -> list[weakref.ref[Any]]:
    """Watch the caches that the members get."""
    seen: list[weakref.ref[Any]] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            seen.append(weakref.ref(kwargs["past_key_values"]))

    for member in members:
        member.register_forward_pre_hook(watch, with_kwargs=True)
    return seen


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_call_outlives_it(family: str, way: dict[str, Any]) -> None:
    ensemble = ParallelEnsemble([FAMILIES[family](seed) for seed in (1, 2)], ["cpu:0", "cpu:1"])
    decode(ensemble, **prompts())  # starts the workers
    before = [set(vars(module)) for module in ensemble.modules()]
    seen = caches_seen(list(ensemble.model_list))
    decode(ensemble, **prompts(), **way)
    gc.collect()
    assert seen
    assert not any(reference() is not None for reference in seen)
    assert [set(vars(module)) for module in ensemble.modules()] == before


def test_nothing_of_a_failed_call_outlives_it() -> None:
    ensemble = ParallelEnsemble([gpt2(1), gpt2(2)], ["cpu:0", "cpu:1"], names=["good", "bad"])
    seen = caches_seen(list(ensemble.model_list))

    def fail(module: nn.Module, inputs: Any, output: Any) -> None:
        if len(seen) > 4:
            raise ZeroDivisionError("for the test")

    handle = ensemble.model_list[1].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError) as caught:
        decode(ensemble, **prompts())
    assert "'bad' (index 1) on cpu:1" in "".join(caught.value.__notes__)
    del caught
    gc.collect()
    assert not any(reference() is not None for reference in seen)
    handle.remove()
    assert decode(ensemble, **prompts()).shape == (3, 12)  # it works again


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_does_not_change_what_the_next_one_gives(family: str, way: dict[str, Any]) -> None:
    ensemble = ParallelEnsemble([FAMILIES[family](seed) for seed in (1, 2)])
    first = decode(ensemble, **prompts(), **way)
    other = decode(ensemble, **prompts(batch=5, length=11), **way)
    assert other.shape != first.shape
    assert torch.equal(decode(ensemble, **prompts(), **way), first)


def test_two_threads_decode_with_one_ensemble_at_once() -> None:
    ensemble = ParallelEnsemble([gpt2(1), gpt2(2)], ["cpu:0", "cpu:1"])
    batches = [prompts(), prompts(batch=5, length=11)]
    expected = [decode(ensemble, **batch) for batch in batches]
    found: dict[int, Tensor] = {}

    def run(index: int) -> None:
        found[index] = decode(ensemble, **batches[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], expected[index]) for index in (0, 1))


def test_offloaded_members_decode_as_members_in_memory() -> None:
    members = [gpt2(seed) for seed in (1, 2, 3)]
    expected = decode(ParallelEnsemble(copy.deepcopy(members)), **prompts(), num_beams=2)
    ensemble = ParallelEnsemble(members, "cpu", offload="disk")
    assert torch.equal(decode(ensemble, **prompts(), num_beams=2), expected)


def test_the_composite_cache_does_to_each_cache_what_is_asked() -> None:
    caches = MemberCaches({index: {"past_key_values": DynamicCache()} for index in (0, 2)})
    assert caches.get_seq_length() == 0
    keys = torch.arange(3.0)[:, None, None, None].expand(3, 1, 6, 2)
    for index in (0, 2):
        caches.of(index)["past_key_values"].update(keys, keys, 0)
    copied = copy.deepcopy(caches)
    caches.reorder_cache(torch.tensor([2, 0, 1]))
    caches.batch_repeat_interleave(2)
    caches.crop(4)
    caches.batch_select_indices(torch.tensor([0, 2]))
    for index in (0, 2):
        layer = caches.of(index)["past_key_values"].layers[0]
        assert layer.keys.shape == (2, 1, 4, 2)
        assert layer.keys[:, 0, 0, 0].tolist() == layer.values[:, 0, 3, 1].tolist() == [2.0, 0.0]
    assert (caches.get_seq_length(), copied.get_seq_length()) == (4, 6)


def test_a_member_may_return_another_cache_than_it_was_given() -> None:
    caches, other = MemberCaches({0: {"past_key_values": DynamicCache()}}), DynamicCache()
    caches.keep(0, CausalLMOutputWithPast(past_key_values=other))
    assert caches.of(0)["past_key_values"] is other
    caches.keep(0, {"mems": (torch.zeros(1),)})
    assert list(caches.of(0)) == ["past_key_values"]
    assert caches.get_seq_length() == 0  # a tuple cannot tell
    with pytest.raises(TypeError, match="member 0, of type tuple, cannot follow beams"):
        caches.reorder_cache(torch.tensor([0]))
    with pytest.raises(TypeError, match="member 0, of type tuple, has no crop"):
        caches.crop(1)


def test_the_generation_config_of_the_ensemble_is_the_first_members() -> None:
    ensemble = ParallelEnsemble([gpt2(1), gpt2(2)])
    ensemble.generation_config.max_new_tokens = 3
    assert ensemble.generate(**prompts()).shape == (3, 10)
    assert ensemble.generate(**prompts(), generation_config=GenerationConfig(max_new_tokens=4)).shape == (3, 11)
