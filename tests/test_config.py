"""Every YAML under config/: it composes, its targets exist, its options are the constructor's and are explained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from saved_ensembles import two_towers

CONFIG = Path(__file__).parent.parent / "config"
FILES = sorted(CONFIG.rglob("*.yaml"))
METHODS = sorted((CONFIG / "method").rglob("*.yaml"))
NO_OPTION = {"_target_", "_recursive_", "defaults"}  # Hydra's words, not ours
KEY = re.compile(r"^(?P<name>[A-Za-z_][\w-]*):(?P<rest>.*)$")


def name_of(path: Path) -> str:
    """Return the path as it stands in a test's name."""
    return path.relative_to(CONFIG).with_suffix("").as_posix()


def composed(path: Path, host_config_dir: Path) -> DictConfig:
    """Return the node that the command line makes of ``group=name``."""
    group, _, name = name_of(path).partition("/")
    with initialize_config_dir(str(host_config_dir), version_base=None):
        cfg = compose("fabric_model_fusion", [f"{group}={name}"])
    node = cfg[group]
    assert isinstance(node, DictConfig)
    return node


def targets(node: Any) -> Iterator[str]:
    """Yield every ``_target_`` in plain data."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def arguments(method: type) -> list[str]:
    """Return the names of a method's arguments, those that it hands on to the class it comes from first."""
    names: list[str] = []
    for cls in reversed(method.__mro__):
        if cls.__module__.startswith("fusion_ensemble_plugin") and "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return names


def unexplained_keys(text: str) -> list[str]:
    """Return the top-level options with a comment neither beside nor right above them."""
    missing, above = [], ""
    for line in text.splitlines()[2:]:
        if (key := KEY.match(line)) and key["name"] not in NO_OPTION and "#" not in key["rest"] + above[:1]:
            missing.append(key["name"])
        above = line
    return missing


def test_the_check_for_comments_finds_a_key_without_one() -> None:
    assert unexplained_keys("# a\n# b\nplain: 1\nbeside: 2 # why\n# above\nunder: 3\n  nested: 4\n") == ["plain"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_yaml_starts_with_two_header_lines_and_explains_every_option(path: Path) -> None:
    text = path.read_text()
    assert all(line.startswith("# ") for line in text.splitlines()[:2])
    assert unexplained_keys(text) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_yaml_composes_and_its_targets_exist(path: Path, host_config_dir: Path) -> None:
    found = list(targets(OmegaConf.to_container(composed(path, host_config_dir), resolve=False)))
    assert found
    for target in found:
        assert callable(get_object(target)), target


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_yaml_is_instantiated_as_the_host_does_it(path: Path, host_config_dir: Path, tmp_path: Path) -> None:
    node = composed(path, host_config_dir)
    if name_of(path) == "modelpool/saved_ensemble":
        two_towers().save_pretrained(tmp_path / "saved")
        node.path = str(tmp_path / "saved")
    made = instantiate(node, _recursive_=node.get("_recursive_", False))
    assert isinstance(made, get_object(node["_target_"]))


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_methods_options_are_its_constructors_arguments(path: Path, host_config_dir: Path) -> None:
    node = composed(path, host_config_dir)
    assert [key for key in node if key not in NO_OPTION] == arguments(get_object(node["_target_"]))
