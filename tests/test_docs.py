"""The README and the documentation: every code block runs, or is composed if it needs a model hub."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

REPO = Path(__file__).parent.parent
PAGES = sorted([REPO / "README.md", *REPO.glob("docs/**/*.md")])
SHOWN_ONLY = {"text", "mermaid", "console"}
"""Fences that show output or pictures, not code."""


class Block(NamedTuple):
    """A fenced code block: its language, the words after it, its code and its line."""

    language: str
    words: tuple[str, ...]
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.map:
            language, *words = token.info.split() or [""]
            yield Block(language, tuple(words), token.content, token.map[0] + 1)


def pages_with(wanted: Callable[[Block], bool]) -> list[Path]:
    """Return the pages that have such a block."""
    return [page for page in PAGES if any(map(wanted, blocks(page)))]


def page_id(page: Path) -> str:
    return str(page.relative_to(REPO))


def run(command: list[str], cwd: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language_that_is_run_or_only_shown(page: Path) -> None:
    known = {"bash", "python", "yaml", "toml", *SHOWN_ONLY}
    assert [block for block in blocks(page) if block.language not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_yaml_blocks_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert yaml.safe_load(block.code)


def test_install_blocks_only_install_or_call_make() -> None:
    lines = [line for page in PAGES for b in blocks(page) if b.words == ("install",) for line in b.code.splitlines()]
    allowed = ("make ", "pip install ", "git clone ", "cd ")
    assert [line for line in lines if not line.startswith(allowed)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.words == ("hub",) for b in blocks(page))], ids=page_id
)
def test_commands_that_need_a_hub_compose(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.words == ("hub",):
            run(["bash", "-euc", f"{block.code.rstrip()} --cfg job"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=page_id
)
def test_the_pages_commands_and_python_run_one_after_another(page: Path, tmp_path: Path) -> None:
    python = ""
    for block in blocks(page):
        if block.language == "bash" and not block.words:
            run(["bash", "-euc", block.code], tmp_path)
        elif block.language == "python" and not block.words:
            python += f"\n# {page.name}:{block.line}\n{block.code}"
            script = tmp_path / "page.py"
            script.write_text(python)
    if python:
        run([sys.executable, "page.py"], tmp_path)
