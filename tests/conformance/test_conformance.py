"""Every family, method and placement: what the host reports equals a loop over the members in float64."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from .families import FAMILIES
from .family import DEVICE_MAPS, METHODS, Family, command, flat, run_in_process

pytestmark = [
    pytest.mark.slow,
    # the host's, Lightning's and transformers' own warnings
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what Hydra does to the loggers of a process that it takes for its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    disabled = {name: getattr(logger, "disabled", False) for name, logger in root.manager.loggerDict.items()}
    yield
    root.handlers[:], root.level = handlers, level
    for name, was in disabled.items():
        if isinstance(logger := root.manager.loggerDict[name], logging.Logger):
            logger.disabled = was


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.slug)
def family(request: pytest.FixtureRequest) -> Family:
    """Return each family in turn."""
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the family's models, data and YAMLs."""
    made = tmp_path_factory.mktemp(family.slug)
    family.prepare(made)
    return made


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
@pytest.mark.parametrize("method", METHODS)
def test_the_report_equals_a_float64_loop_over_the_members(
    family: Family, folder: Path, method: str, device_map: str
) -> None:
    if method in family.refused:
        with pytest.raises(ValueError, match=family.refused[method]):
            run_in_process(command(family, method, device_map), folder)
        return
    found = flat(run_in_process(command(family, method, device_map), folder))
    wanted = family.expected(folder, method)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        exact = "accuracy" in name
        assert found[name] == pytest.approx(value, rel=1e-7 if exact else 1e-4, abs=1e-7 if exact else 1e-5), name
