"""Write the matrix and the measured part of each family's page into the documentation.

python tests/write_family_pages.py [FAMILY ...]
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from conformance.families import FAMILIES
from conformance.pages import HEADER, INDEX, Measured, between, link, measured_part, page_path, write_between


def main(slugs: list[str]) -> None:
    """Measure the families of these names, or all, and write what they show."""
    warnings.simplefilter("ignore")
    rows = {line.split(" | ")[0]: line for line in between(INDEX).splitlines()}
    for family in FAMILIES:
        if slugs and family.slug not in slugs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            family.prepare(Path(folder))
            measured = Measured(family, Path(folder))
            rows[f"| {link(family)}"] = measured.row()
            write_between(page_path(family), measured_part(measured))
    known = [rows[name] for family in FAMILIES if (name := f"| {link(family)}") in rows]
    write_between(INDEX, "\n".join([*HEADER, *known]))


if __name__ == "__main__":
    main(sys.argv[1:])
