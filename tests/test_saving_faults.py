"""Saving when things go wrong: killed processes, full disks, damaged folders, folders of others."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from saved_ensembles import assert_same_bits, mlp, tensors, tower
from torch import nn

from fusion_ensemble_plugin import ParallelEnsemble

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""What Python reports, before it does it, of work in the file system."""


def small(seed: int) -> ParallelEnsemble:
    return ParallelEnsemble([mlp(seed), mlp(seed + 1)], names=["a", "b"])


def load(folder: Path) -> Any:
    return ParallelEnsemble.from_pretrained(folder, models=lambda name: mlp(99))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a saved ensemble's manifest."""
    file = folder / "ensemble.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of two saved towers, "mnist" and "svhn"."""
    ParallelEnsemble([tower(0), tower(1)], names=["mnist", "svhn"]).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def in_a_child(work: Callable[[], None]) -> int:
    """Do something in a copy of this process and return how that ended, as ``waitpid`` tells."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at(step: int, below: Path) -> None:
    """Kill this process at its n-th step in a folder of the file system."""
    left = [step]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in STEPS and (str(args[0]).startswith(str(below)) or not str(args[0]).startswith("/")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("before", ["nothing", "an ensemble", "a tokenizer"])
def test_wherever_a_save_is_killed_the_old_or_the_new_one_is_there_and_can_be_saved_over(
    before: str, tmp_path: Path
) -> None:
    inputs = torch.linspace(-1, 1, 20).view(5, 4)
    old, new = small(0), small(5)
    answers = {"old": tensors(old, inputs)[0], "new": tensors(new, inputs)[0]}
    seen = []
    for step in range(1, 200):
        path = tmp_path / str(step) / "saved"
        if before == "an ensemble":
            old.save_pretrained(path)
        elif before == "a tokenizer":
            path.mkdir(parents=True)
            (path / "tokenizer.json").write_text("{}")

        def work(step: int = step, path: Path = path) -> None:
            kill_at(step, path.parent)
            new.save_pretrained(path)

        status = in_a_child(work)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        if (path / "ensemble.json").exists():
            answer = tensors(load(path), inputs)[0]
            seen.append(next(name for name, expected in answers.items() if torch.equal(answer, expected)))
        else:
            seen.append("nothing")
        if status == 0:
            break
        new.save_pretrained(path)
        assert torch.equal(tensors(load(path), inputs)[0], answers["new"])
    first = "old" if before == "an ensemble" else "nothing"
    turn = seen.index("new")
    assert seen == [first] * turn + ["new"] * (len(seen) - turn)
    assert 10 < turn < len(seen)  # killed at many places on both sides of the moment when it is in force


@pytest.mark.parametrize("before", [False, True], ids=["first save", "over an old save"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_disk_that_is_full_leaves_what_was_there(before: bool, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    old, new = small(0), ParallelEnsemble([tower(0), tower(1)])
    if before:
        old.save_pretrained(path)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # what a full disk does to a long write
        with pytest.raises(OSError, match="can't be written"):
            new.save_pretrained(path)

    assert in_a_child(work) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == (["saved"] if before else [])
    if before:
        assert_same_bits(old, load(path), torch.ones(5, 4))
        assert len(list(path.iterdir())) == 2


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"takes [\d,]+ bytes, but only 10 are free"):
        small(0).save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_goes_a_day_later(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    small(0).save_pretrained(path)
    leftovers = [tmp_path / ".saved.saving-0123abcd", path / ".saving-0123abcd", path / "members-0123abcd"]
    for index, leftover in enumerate(leftovers):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"\0" * 100)
        if index != 1:
            os.utime(leftover, (0, 0))
    small(1).save_pretrained(path)
    assert [leftover.exists() for leftover in leftovers] == [False, True, False]
    assert_same_bits(small(1), load(path), torch.ones(5, 4))


def test_a_truncated_file_is_refused_by_name(folder: Path) -> None:
    file = next(folder.glob("members-*/1/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"member 'svhn': .*/1/model.safetensors has \d+ bytes of \d+"):
        ParallelEnsemble.from_pretrained(folder)


def test_a_damaged_header_is_refused_by_name(folder: Path) -> None:
    file = next(folder.glob("members-*/1/model.safetensors"))
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"/1/model.safetensors is damaged") as caught:
        ParallelEnsemble.from_pretrained(folder)
    if sys.version_info >= (3, 11):
        assert "while loading member 'svhn'" in str(caught.value.__notes__)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_refused_by_name(name: str, folder: Path) -> None:
    next(folder.glob(f"members-*/0/{name}")).unlink()
    with pytest.raises(FileNotFoundError, match=f"member 'mnist': .*{name} is missing"):
        ParallelEnsemble.from_pretrained(folder)


def test_a_folder_without_a_manifest_is_no_saved_ensemble(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no saved ensemble: there is no ensemble.json in it"):
        ParallelEnsemble.from_pretrained(tmp_path)


def test_a_manifest_of_a_newer_version_is_refused_with_both_versions(folder: Path) -> None:
    edit(folder, lambda data: data.update(version=2, versions={"fusion-ensemble-plugin": "3.0"}, members="otherwise"))
    with pytest.raises(ValueError, match=r"of version 2, written by fusion-ensemble-plugin 3.0; this one reads .* 1"):
        ParallelEnsemble.from_pretrained(folder)


OUTSIDE = ["../other", "a/../../b", "/etc", "C:/x", "..\\x"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_outside_the_folder_is_refused_wherever_it_stands(path: str, folder: Path) -> None:
    edit(folder, lambda data: data["members"][0].update(folder=path, files={path: 1}))
    with pytest.raises(ValueError, match="is damaged") as caught:
        ParallelEnsemble.from_pretrained(folder)
    assert str(caught.value).count("a path outside the folder") == 2
    assert "members[0].folder" in str(caught.value)
    assert "members[0].files" in str(caught.value)


def test_all_that_is_wrong_in_a_manifest_is_told_at_once(folder: Path) -> None:
    def spoil(data: dict[str, Any]) -> None:
        data["members"][0].update(name="svhn", weight="heavy")
        data["members"][1].update(kind="pickle")
        data["reducer"] = {"_target_": "os.system", "command": "true"}

    edit(folder, spoil)
    with pytest.raises(ValueError, match="is damaged") as caught:
        ParallelEnsemble.from_pretrained(folder)
    for part in ("weight is 'heavy'", "kind is 'pickle'", "'svhn' twice", "reducer is {'_target_'"):
        assert part in str(caught.value)


def test_a_file_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "ensemble.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"ensemble.json is damaged: "):
        ParallelEnsemble.from_pretrained(folder)


def test_only_model_classes_of_transformers_are_made(folder: Path) -> None:
    edit(folder, lambda data: data["members"][0].update(class_name="Trainer"))
    with pytest.raises(ValueError, match="no model class 'Trainer'"):
        ParallelEnsemble.from_pretrained(folder)


def test_a_class_that_nobody_announces_is_not_imported(folder: Path) -> None:
    edit(folder, lambda data: data.update(class_name="antigravity:Ensemble"))
    with pytest.raises(ValueError, match="antigravity:Ensemble, which no installed package announces"):
        ParallelEnsemble.from_pretrained(folder)
    assert "antigravity" not in sys.modules


def test_a_folder_of_something_else_is_never_saved_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not a saved ensemble \(it holds config.json, thesis.tex\)"):
        small(0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file; an ensemble is saved as a folder"):
        small(0).save_pretrained(tmp_path / "thesis.tex")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "thesis.tex"]


def test_an_empty_folder_a_tokenizers_and_an_ensembles_are_saved_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text("{}")
    for seed in range(3):
        small(seed).save_pretrained(tmp_path)
    assert_same_bits(small(2), load(tmp_path), torch.ones(5, 4))
    assert {entry.name.split("-")[0] for entry in tmp_path.iterdir()} == {
        "ensemble.json",
        "members",
        "special_tokens_map.json",
        "tokenizer.json",
    }
    assert len(list(tmp_path.iterdir())) == 4


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    small(0).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same_bits(small(0), load(tmp_path / "link"), torch.ones(5, 4))


def test_what_cannot_be_saved_is_told_with_the_members_names_before_anything_is_written(tmp_path: Path) -> None:
    class Quantized(nn.Parameter):
        """What quantisation libraries make of weights: a tensor that is more than its numbers."""

    packed = mlp(0)
    packed[0].weight = Quantized(torch.zeros(8, 4), requires_grad=False)
    empty = nn.Linear(2, 2, device="meta")
    ensemble = ParallelEnsemble([packed, mlp(1), empty], names=["packed", "plain", "empty"], output_keys=[("a",)])
    with pytest.raises(ValueError, match="can't be saved") as caught:
        ensemble.save_pretrained(tmp_path / "saved")
    for part in ("'packed': 1 of its tensors", "is Quantized", "'empty': 2 of its", "meta device", "output_keys"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pushing_to_the_hub_says_how(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"push_to_hub: .*hf upload"):
        small(0).save_pretrained(tmp_path / "saved", push_to_hub=True)


def test_an_unknown_member_is_told_with_those_there_are(folder: Path) -> None:
    from fusion_ensemble_plugin.saving import load_member

    with pytest.raises(KeyError, match=r"no member 'dtd'; it has 'mnist', 'svhn'"):
        load_member(folder, "dtd")


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConnectionError, match=r"no folder org/ensemble here.* hf download org/ensemble --local-dir"):
        ParallelEnsemble.from_pretrained("org/ensemble")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hf download org/ensemble"):
        ParallelEnsemble.from_pretrained("org/ensemble")


@pytest.mark.parametrize("path", ["./nowhere", "/no/where/at/all", "a/b/c", "~/no-such-folder"])
def test_a_path_that_is_no_hub_id_is_not_looked_for_there(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ParallelEnsemble.from_pretrained(path)
