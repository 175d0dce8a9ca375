"""Every score in a table of the documentation is one that a file of results gives."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from ssdd_jax.report import results_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "docs/protocols.md", "experiments/README.md")]
# A mean with its spread, an error or a percentage: what only a measurement can give.
SCORE = re.compile(r"(\d*\.\d{3}|\d+\.\d)( ± (\d*\.\d{3}|\d+\.\d))?|\d*\.\d{3}")


@cache
def measured():
    """Return every cell of every table of every file of results, by the row's name."""
    found = {}
    for file in sorted((ROOT / "experiments" / "results").glob("*.json")):
        for _, rows in results_tables(json.loads(file.read_text())).values():
            for name, *cells in rows:
                found.setdefault(name, set()).update(cells)
    return found


def tables(page):
    """Yield the header and the rows of every table of a page whose rows are methods."""
    for block in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE):
        header, _, *rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if header[0] == "method":
            yield header, rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_score_of_a_table_is_in_a_file_of_results(page):
    checked, strangers = 0, []
    for header, rows in tables(page):
        for name, *cells in rows:
            for column, cell in zip(header[1:], cells, strict=True):
                if column in ("seconds", "images", "views") or not SCORE.fullmatch(cell):
                    continue
                checked += 1
                if cell not in measured().get(name, ()):
                    strangers.append((name, column, cell))
    assert not strangers
    assert checked > 10
