"""The README and the documentation: every code block runs, or is composed if it needs a model hub."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

from fusion_ensemble_plugin import hookspecs
from fusion_ensemble_plugin.plugins import BUILTIN, registry

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
            language, *words = token.info.strip("{}").replace(".", "").split() or [""]  # ```bash hub, or {.bash .hub}
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


def test_the_site_builds_strictly_and_all_its_code_blocks_are_code(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)], REPO)
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > len(PAGES) / 2
    assert [page.relative_to(tmp_path) for page in built if "```" in page.read_text()] == []


def signatures(code: str) -> dict[str, str]:
    """Return each function of some code with its arguments and what it returns, exactly as they are written."""
    tree = ast.parse(code)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    owners = [("", tree), *((f"{owner.name}.", owner) for owner in classes)]
    return {
        f"{prefix}{node.name}": f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Constant(None))}"
        for prefix, owner in owners
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    page = REPO / "docs/how-to/write-your-own-variant.md"
    documented: dict[str, str] = {}
    for block in blocks(page):
        if block.words == ("hooks",):
            documented |= signatures(block.code)
    assert documented == signatures(Path(hookspecs.__file__).read_text())
    assert {"register_reducers", "register_executors"} < set(documented)


def test_the_reference_lists_every_reducer_with_its_class() -> None:
    row = re.compile(r"^\| `(\w+)` \| \[`\w+`\]\[([\w.]+)\] \|$", re.MULTILINE)
    listed = row.findall((REPO / "docs/reference/reducers.md").read_text())
    ours = {name: factory for name, (factory, source) in registry().reducers.items() if source == BUILTIN}
    assert dict(listed) == {name: f"{factory.__module__}.{factory.__qualname__}" for name, factory in ours.items()}


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
@pytest.mark.parametrize("page", pages_with(lambda b: b.language in ("bash", "python") and not b.words), ids=page_id)
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
