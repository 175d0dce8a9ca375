"""Every score in a table of the documentation is one that a file of results gives."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from ssdd_jax.report import results_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "docs/protocols.md", "experiments/README.md", "experiments/earlier.md")]
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


def records():
    """Yield what the docstrings of configs say that a file of results has: the file, and rows with their scores."""
    for config in sorted((ROOT / "configs").glob("*.py")):
        text = " ".join(ast.get_docstring(ast.parse(config.read_text())).split())
        for file, rows in re.findall(r"Obtained \((\w+\.json)\): (.+?)\.(?= [A-Z`]|$)", text):
            yield pytest.param(file, rows, id=f"{config.stem}-{file}")


@pytest.mark.parametrize(("file", "rows"), list(records()))
def test_what_a_config_says_that_was_obtained_is_in_its_file_of_results(file, rows):
    tables = results_tables(json.loads((ROOT / "experiments" / "results" / file).read_text()))
    if rows == "it is":
        firsts = [firsts_of(lines, "error" in title) for title, (_, lines) in tables.items() if title.startswith("Students")]
        assert firsts
        assert all(set(columns) == {"ours"} for columns in firsts)
        return
    cells = {(name, cell) for _, lines in tables.values() for name, *values in lines for cell in values}
    said = [tuple(row.split(" ", 1)) for row in rows.split(", ")]
    assert said
    assert set(said) <= cells


def firsts_of(rows, least):
    """Return the row of distilled sets that is first in each column of a table of students."""
    sets = {name: [float(cell.split(" ")[0]) for cell in cells] for name, *cells in rows if name in ("random", "krr_st", "ours")}
    return [(min if least else max)(sets, key=lambda name: sets[name][column]) for column in range(len(sets["ours"]))]
