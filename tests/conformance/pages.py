"""The matrix and the pages of the families: what stands between two marks in the docs is written from measurements."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .family import CONFIG, DEVICE_MAPS, METHODS, Family, Figures, command, flat, run_in_process

DOCS = Path(__file__).parent.parent.parent / "docs" / "families"
INDEX = DOCS / "index.md"
BEGIN, END = "<!-- measured: python tests/write_family_pages.py -->", "<!-- end of what is measured -->"
HEADER = [
    "| family | model pool | task pool | " + " | ".join(METHODS) + " |",
    "|---" * (3 + len(METHODS)) + "|",
]
NUMBER = re.compile(r"-?\d+\.\d+")


class Measured:
    """A family's reports, each run once, beside what they should be.

    Args:
        family: What is run.
        folder: Where its models and data are.
    """

    def __init__(self, family: Family, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self._reports: dict[tuple[str, str], Any] = {}
        self._expected: dict[str, Figures] = {}

    def report(self, method: str, device_map: str) -> Any:
        """Return what the host reports.

        Raises:
            Exception: What the host's command line raises.
        """
        key = (method, device_map)
        if key not in self._reports:
            line = command(self.family, method, device_map)
            self._reports[key] = run_in_process(self.family, line, self.folder)
        return self._reports[key]

    def figures(self, method: str, device_map: str = "two lanes") -> Figures:
        """Return the figures in the report of a method that is not refused."""
        return self.family.figures(self.report(method, device_map))

    def expected(self, method: str) -> Figures:
        """Return what the figures should be."""
        if method not in self._expected:
            self._expected[method] = self.family.expected(self.folder, method)
        return self._expected[method]

    def outcome(self, method: str, device_map: str) -> str:
        """Return what the matrix says: ✓, ✗, or why there are no figures."""
        if method in self.family.meaningless:
            return "no meaning"
        try:
            found = self.figures(method, device_map)
        except ValueError as error:
            if method in self.family.refused and re.search(self.family.refused[method], str(error)):
                return "refused"
            raise
        return "✗" if differences(found, self.expected(method)) else "✓"

    def row(self) -> str:
        """Return the family's line of the matrix."""
        cells = [" / ".join(self.outcome(method, device_map) for device_map in DEVICE_MAPS) for method in METHODS]
        pools = [f"`{self.family.modelpool}`", f"`{self.family.taskpool}`"]
        return f"| {' | '.join([link(self.family), *pools, *cells])} |"


def differences(found: Figures, wanted: Figures) -> list[str]:
    """Return the figures that differ: accuracies at all, others by more than 1e-4 of the value or 1e-5."""
    if found.keys() != wanted.keys():
        return [f"figures are {sorted(found)}, not {sorted(wanted)}"]
    problems = []
    for name, value in wanted.items():
        exact = "acc" in name
        if not math.isclose(found[name], value, rel_tol=1e-7 if exact else 1e-4, abs_tol=1e-7 if exact else 1e-5):
            problems.append(f"{name} is {found[name]}, not {value}")
    return problems


def link(family: Family) -> str:
    """Return the link to a family's page."""
    return f"[{family.title}]({page_path(family).name})"


def page_path(family: Family) -> Path:
    """Return the file of a family's page."""
    return DOCS / f"{family.slug.replace('_', '-')}.md"


def measured_part(measured: Measured) -> str:
    """Return a page's measured part: the pools, a command with its report, and a table of all methods."""
    family = measured.family
    parts = [f"The pools, with models and data in the current folder (`config/modelpool/{family.slug}.yaml` and"]
    parts[0] += f" `config/taskpool/{family.slug}.yaml`):\n"
    for group in ("modelpool", "taskpool"):
        parts.append(f"```yaml\n{(CONFIG / group / f'{family.slug}.yaml').read_text()}```\n")
    line = " ".join(f"'{part}'" if "[" in part else part for part in command(family, "simple", "two lanes"))
    parts.append(f"```console\n$ fusion_bench {line}\n```\n")
    parts.append(f"```text\n{json.dumps(rounded(shown(family, measured)), indent=2)}\n```\n")
    parts.append("All methods, on two lanes; with `device_map=null` they are the same:\n")
    parts.append(table(measured))
    return "\n".join(parts)


def shown(family: Family, measured: Measured) -> Any:
    """Return the report, or its figures if it holds much more."""
    report = measured.report("simple", "two lanes")
    return report if len(flat(report)) == len(measured.figures("simple")) else measured.figures("simple")


def table(measured: Measured) -> str:
    """Return a line a figure and a column a method."""
    methods = measured.family.evaluated
    figures = {method: measured.figures(method) for method in methods}
    lines = [f"| | {' | '.join(methods)} |", "|---" + "|---:" * len(methods) + "|"]
    for name in figures[methods[0]]:
        lines.append(f"| {name} | " + " | ".join(f"{figures[method][name]:.4f}" for method in methods) + " |")
    return "\n".join(lines) + "\n"


def rounded(value: Any) -> Any:
    """Round a report's numbers to four decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def between(page: Path) -> str:
    """Return a page's measured part as it is written there."""
    text = page.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write_between(page: Path, part: str) -> None:
    """Put the measured part in its place."""
    text = page.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}\n\n{part.strip()}\n\n{after}")


def split_numbers(text: str) -> tuple[str, list[float]]:
    """Take a text's decimal numbers out of it."""
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]
