"""Members' outputs that are kept: never another's, never an old one's, never more than what was computed."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fusion_ensemble_plugin import ParallelEnsemble, SimpleEnsembleAlgorithm
from fusion_ensemble_plugin.cache import OutputCache, make_cache
from fusion_ensemble_plugin.cache.files import NotAsFile, Unreadable, read, write

MIB = 2**20
INPUT = torch.linspace(-1, 1, 12).reshape(3, 4)


class Tower(nn.Module):
    """Answers like a vision tower; counts its runs where no attribute of its own changes."""

    def __init__(self, runs: list[str], name: str, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        self.weight = nn.Parameter(torch.randn(4, 5, generator=generator), requires_grad=False)
        self.scale = scale
        self.count = runs.append
        self.name = name

    def forward(self, pictures: Tensor, bias: float = 0.0) -> BaseModelOutputWithPooling:
        self.count(self.name)
        hidden = self.scale * pictures @ self.weight + bias
        return BaseModelOutputWithPooling(last_hidden_state=hidden[:, None], pooler_output=hidden.t().clone().t())


@pytest.fixture
def runs() -> list[str]:
    """Return the names of the members that ran."""
    return []


def ensemble(runs: list[str], cache: OutputCache | None, **options: Any) -> ParallelEnsemble:
    made = ParallelEnsemble([Tower(runs, name) for name in "abc"], names="abc", cache=cache, **options)
    return made.eval()


def same(ours: Any, theirs: Any) -> bool:
    return type(ours) is type(theirs) and all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values()))


@pytest.mark.parametrize("memory", [MIB, 0])
def test_any_number_of_combinations_runs_each_member_once_and_gives_the_same_bits(runs: list[str], memory: int) -> None:
    cache = OutputCache(memory)
    kept, plain = ensemble(runs, cache), ensemble([], None)
    combinations: list[Callable[[ParallelEnsemble], ParallelEnsemble]] = [
        lambda one: one,
        lambda one: one.subset([0]),
        lambda one: one.subset([2, 1]),
        lambda one: one.subset([0, 1, 2], weights=[0.2, 0.3, 0.5]),
        lambda one: one.subset([0, 1, 2], reducer="median"),
    ]
    for combined in combinations:
        assert same(combined(kept)(INPUT), combined(plain)(INPUT))
    assert sorted(runs) == ["a", "b", "c"]
    assert cache.misses == 3


def test_members_on_lanes_run_once_too(runs: list[str]) -> None:
    lanes: dict[str, Any] = {"device_map": ["cpu:0", "cpu:1", "cpu:0"]}
    kept, plain = ensemble(runs, OutputCache(MIB), **lanes), ensemble([], None, **lanes)
    assert same(kept(INPUT), plain(INPUT))
    assert same(kept.subset([1])(INPUT), plain.subset([1])(INPUT))
    assert same(kept.subset([1, 2])(INPUT), plain.subset([1, 2])(INPUT))
    assert sorted(runs) == ["a", "b", "c"]


def test_offloaded_members_share_their_resting_weights_with_a_subset(runs: list[str]) -> None:
    pool = {name: Tower(runs, name) for name in "abc"}
    method = SimpleEnsembleAlgorithm(device_map="auto", max_memory={"cpu:0": 90}, offload="disk", cache="memory")
    made = method.run(pool).eval()
    assert made.placement is not None
    assert made.placement.offloaded
    assert same(made(INPUT), ensemble([], None)(INPUT))
    assert same(made.subset([1, 2])(INPUT), ensemble([], None).subset([1, 2])(INPUT))
    assert sorted(runs) == ["a", "b", "c"]


CHANGES: dict[str, Callable[[Tower], object]] = {
    "in place": lambda tower: tower.weight.mul_(2),
    "one number through data": lambda tower: tower.weight.data[3].fill_(7.0),
    "assigned data": lambda tower: setattr(tower.weight, "data", tower.weight.data + 1),
    "an attribute": lambda tower: setattr(tower, "scale", 3.0),
    "another dtype": lambda tower: tower.double().float(),
    "a loaded state": lambda tower: tower.load_state_dict({"weight": torch.ones(4, 5)}),
}


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "another dtype"])
def test_a_member_that_has_changed_in_any_way_computes_anew(runs: list[str], change: str) -> None:
    kept, plain = ensemble(runs, OutputCache(MIB)), ensemble([], None)
    kept(INPUT)
    for one in (kept, plain):
        with torch.no_grad():
            CHANGES[change](one.model_list[1])  # type: ignore[arg-type]
    assert same(kept(INPUT), plain(INPUT))
    assert sorted(runs) == ["a", "b", "b", "c"]


@pytest.mark.parametrize(
    "given",
    [
        ((INPUT + 1,), {}),
        ((INPUT.double(),), {}),
        ((INPUT[:2],), {}),
        ((INPUT,), {"bias": 1.0}),
        ((INPUT.t().contiguous().t(),), {}),
    ],
)
def test_another_input_is_computed(runs: list[str], given: Any) -> None:
    made = ensemble(runs, OutputCache(MIB)).subset([0])
    made(INPUT)
    if given[0][0].dtype == torch.float64:
        with pytest.raises(RuntimeError, match="dtype"):
            made(*given[0], **given[1])
    else:
        made(*given[0], **given[1])
    assert runs == ["a", "a"]


def test_who_writes_into_an_output_does_not_change_what_is_kept(runs: list[str]) -> None:
    made = ensemble(runs, OutputCache(MIB)).subset([0])
    first = made(INPUT)["pooler_output"].clone()
    made(INPUT)["pooler_output"].fill_(9)
    assert torch.equal(made(INPUT)["pooler_output"], first)


def test_only_the_fields_that_are_asked_for_take_memory(runs: list[str]) -> None:
    cache = OutputCache(3 * 5 * 4)  # one pooled output
    made = ensemble(runs, cache, output_keys=["pooler_output"]).subset([0])
    made(INPUT)
    assert made(INPUT).keys() == {"pooler_output"}
    assert runs == ["a"]
    assert cache._folder is None


def test_members_in_training_mode_with_hooks_or_gradients_are_not_kept(
    runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = ensemble(runs, OutputCache(MIB))
    made.model_list[0].train()
    made.model_list[1].register_forward_hook(lambda *_: None)
    made.model_list[2].weight.requires_grad_(True)  # type: ignore[union-attr]
    assert made(INPUT).pooler_output.requires_grad
    made(INPUT)
    assert sorted(runs) == ["a", "a", "b", "b", "c", "c"]
    assert caplog.text.count("training mode") == caplog.text.count("forward hooks") == 1
    assert caplog.text.count("no_grad") == 1


def test_a_member_that_draws_random_numbers_is_not_kept() -> None:
    class Noise(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values + torch.rand(())

    made = ParallelEnsemble([Noise()], cache=OutputCache(MIB)).eval()
    assert not torch.equal(made(INPUT), made(INPUT))


def test_a_later_run_finds_what_an_earlier_one_has_computed(runs: list[str], tmp_path: Path) -> None:
    first = ensemble(runs, make_cache("disk", MIB, tmp_path))(INPUT)
    again = ensemble(runs, make_cache("disk", 0, tmp_path))(INPUT)
    assert sorted(runs) == ["a", "b", "c"]
    assert same(first, again)
    assert again.pooler_output.stride() == first.pooler_output.stride()


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another's"])
def test_a_damaged_file_is_dropped_with_a_warning_and_computed_anew(
    runs: list[str], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ensemble(runs, make_cache("disk", MIB, tmp_path))(INPUT)
    file, other = sorted(tmp_path.rglob("*.safetensors"))[:2]
    content = file.read_bytes()
    broken = {
        "cut": content[:-7],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "emptied": b"",
        "another's": other.read_bytes(),
    }
    file.write_bytes(broken[damage])
    assert same(ensemble(runs, make_cache("disk", MIB, tmp_path))(INPUT), expected)
    assert len(runs) == 4
    assert caplog.text.count("dropped and computed anew") == 1
    assert same(ensemble(runs, make_cache("disk", MIB, tmp_path))(INPUT), expected)
    assert len(runs) == 4


def test_a_full_disk_costs_a_warning_and_not_the_run(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion_ensemble_plugin.cache.files.os.replace", full)
    made = ensemble(runs, make_cache("disk", 0, tmp_path))
    assert same(made(INPUT), ensemble([], None)(INPUT))
    assert same(made(INPUT), ensemble([], None)(INPUT))
    assert caplog.text.count("No space left on device") == 1
    assert "The run goes on" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if ".safetensors" in path.name]


def test_a_read_only_folder_costs_a_warning_and_not_the_run(
    runs: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o500)
    folder = tmp_path if os.geteuid() else Path("/proc/nothing-can-be-written-here")  # root writes to read-only folders
    made = ensemble(runs, make_cache("disk", 0, folder))
    assert same(made(INPUT), made(INPUT))
    assert "can't be written to" in caplog.text
    assert "The run goes on" in caplog.text
    assert sorted(runs) == ["a", "a", "b", "b", "c", "c"]


def test_files_beyond_the_memory_are_temporary(runs: list[str]) -> None:
    cache = OutputCache(0)
    made = ensemble(runs, cache)
    made(INPUT)
    folder = cache._folder
    assert folder is not None
    assert len(list(folder.rglob("*.safetensors"))) == 3
    del made, cache
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache": "ram"}, "cache='ram': needed is null, memory or disk"),
        ({"cache": "memory", "cache_bytes": -1}, "cache_bytes: '?-1'? is no number of bytes"),
        ({"cache_dir": "somewhere"}, "without a cache"),
        ({"cache": "disk", "cache_dir": "FOREIGN"}, "is no cache of members' outputs"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    class Pool:
        model_names = ("a",)

        def load_model(self, name: str) -> nn.Module:
            raise AssertionError("loaded")

    (tmp_path / "thesis.txt").write_text("mine")
    options = {key: str(tmp_path) if value == "FOREIGN" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=told):
        SimpleEnsembleAlgorithm(**options).run(Pool())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_copies_share_what_is_kept_and_pickles_leave_it_out(runs: list[str]) -> None:
    made = ensemble(runs, OutputCache(MIB)).subset([0])
    made(INPUT)
    made.model_list[0].count = print  # type: ignore[assignment]
    assert copy.deepcopy(made)._runner._cache is made._runner._cache
    assert pickle.loads(pickle.dumps(OutputCache(MIB))).hits == 0


def test_a_file_gives_back_what_was_written_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    output = {"a": [torch.arange(6).reshape(2, 3).t(), None, 1.5], "b": (torch.tensor(float("nan")), "text", True)}
    write(tmp_path / "one", "key", output)
    again = read(tmp_path / "one", "key")
    assert torch.equal(again["a"][0], output["a"][0])
    assert again["a"][0].stride() == (1, 3)
    assert again["a"][1:] == [None, 1.5]
    assert again["b"][1:] == ("text", True)
    assert again["b"][0].isnan()
    with pytest.raises(NotAsFile):
        write(tmp_path / "two", "key", {1: torch.ones(1)})
    with pytest.raises(Unreadable, match="another"):
        read(tmp_path / "one", "other key")


def test_nothing_is_kept_unless_it_is_asked_for(runs: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = ensemble(runs, make_cache(None))
    made(INPUT)
    made(INPUT)
    assert len(runs) == 6
