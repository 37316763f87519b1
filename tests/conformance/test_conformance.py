"""Every family, method and placement: what the host reports equals a loop over the members in float64."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import RunCli

from . import gpt2_classification
from .families import FAMILIES
from .family import DEVICE_MAPS, METHODS, QUIET, Family, command, flat
from .pages import HEADER, INDEX, Measured, between, differences, link, measured_part, page_path, split_numbers

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
def measured(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return the family's reports, run in a folder with its models, data and YAMLs."""
    if family.needs:
        pytest.importorskip(family.needs)
    folder = tmp_path_factory.mktemp(family.slug)
    family.prepare(folder)
    return Measured(family, folder)


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
@pytest.mark.parametrize("method", METHODS)
def test_the_report_equals_a_float64_loop_over_the_members(measured: Measured, method: str, device_map: str) -> None:
    if method in measured.family.evaluated:
        assert differences(measured.figures(method, device_map), measured.expected(method)) == []
    else:
        assert measured.outcome(method, device_map) in ("refused", "no meaning")


def test_each_method_gets_figures_of_its_own(measured: Measured) -> None:
    methods = measured.family.evaluated
    figures = [tuple(round(value, 4) for value in measured.figures(method).values()) for method in methods]
    assert len(set(figures)) == len(figures) - measured.family.alike


def test_the_matrix_has_what_was_found(measured: Measured, record_property: Callable[[str, object], None]) -> None:
    record_property("conformance", measured.row())
    assert measured.row() in between(INDEX).splitlines()


def test_the_familys_page_shows_what_is_measured(measured: Measured) -> None:
    written, numbers = split_numbers(between(page_path(measured.family)))
    wanted, values = split_numbers(measured_part(measured).strip())
    assert written == wanted
    # training ends a little otherwise on another processor
    assert numbers == pytest.approx(values, abs=0.05)


def test_the_matrix_has_all_families_and_no_others() -> None:
    rows = between(INDEX).splitlines()
    assert rows[:2] == HEADER
    assert [line.split(" | ")[0] for line in rows[2:]] == [f"| {link(family)}" for family in FAMILIES]


def test_the_documented_gpt2_command_runs_as_a_process(run_cli: RunCli, tmp_path: Path) -> None:
    gpt2_classification.FAMILY.prepare(tmp_path)
    line = command(gpt2_classification.FAMILY, "simple", "two lanes")
    run_cli(*line, *QUIET, f"report_save_path={Family.report}", cwd=tmp_path)
    written = flat(json.loads((tmp_path / Family.report).read_text()))
    assert written == pytest.approx(gpt2_classification.expected(tmp_path, "simple"), abs=1e-5)
