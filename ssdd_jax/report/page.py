"""The report's page: tables, charts and pictures in one file that opens offline."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from ssdd_jax.report import charts
from ssdd_jax.report.gallery import Gallery
from ssdd_jax.report.tables import CONTROL_LABELS, Cell


@dataclass(frozen=True)
class Row:
    """A row of a table of the page.

    Attributes:
        cells: one per column.
        keys: what switches it on and off: run, method, student, dataset.
        group: rows of one group compete for being the best; None for those that do not compete.
        best: columns in which it is.
    """

    cells: Sequence[Cell]
    keys: Mapping[str, str] = field(default_factory=dict)
    group: Hashable = ()
    best: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: heading.
        header: titles of the columns.
        rows: its rows.
        notes: lines below it.
        prose: whether its cells are texts, which break into lines.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    prose: bool = False

    def __post_init__(self):
        for column in range(len(self.header)):
            groups: dict[Hashable, list[tuple[Row, float]]] = {}
            for row in self.rows:
                cell = row.cells[column]
                if row.group is not None and cell.better and cell.value is not None:
                    groups.setdefault(row.group, []).append((row, cell.better * cell.value))
            for found in groups.values():
                best = max(value for _, value in found)
                for row, value in found:
                    # The best of one says nothing.
                    if len(found) > 1 and value == best:
                        row.best.add(column)


@dataclass(frozen=True)
class Choice:
    """One thing that can be switched on and off."""

    value: str
    label: str
    shown: bool = True
    style: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Charts:
    """Charts of which one is seen at a time.

    Attributes:
        title: heading.
        note: a line below it.
        specs: of Vega-Lite, by what picks them.
    """

    title: str
    note: str
    specs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """What the page shows, from top to bottom.

    Attributes:
        title: heading.
        facts: names and texts.
        warnings: what must not be overlooked.
        filters: what is switched on and off, by key of the rows.
        tables: tables above the charts.
        charts: charts.
        more_tables: tables below them.
        galleries: pictures that open.
        pictures: others: address and what it shows.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    filters: Mapping[str, Sequence[Choice]] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    charts: Sequence[Charts] = ()
    more_tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    pictures: Sequence[tuple[str, str]] = ()


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> Table:
    """Return a table whose first column is the method, for the page; the best of a column is that of all sets."""
    names = {label: method for method, label in CONTROL_LABELS.items()}
    cells = lambda row: [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
    key = lambda row: {"method": names.get(row[0], row[0])} if header[0] == "method" else {}
    return Table(title, header, [Row(cells(row), key(row), None if row[0] in names else ()) for row in rows], notes)


def render(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        ImportError: Jinja2 is not installed, or for charts vl-convert-python.
    """
    import jinja2

    settings = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ssdd_jax.report"), autoescape=True, **settings)
    # Pictures in the order of their views.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    read = lambda name: (resources.files("ssdd_jax.report") / "templates" / name).read_text(encoding="utf-8")
    opened = [{kind: [asdict(item)["groups"] for item in getattr(g, kind)] for kind in ("images", "bases")} for g in page.galleries]
    return environment.get_template("page.html").render(
        page=page,
        style=read("page.css"),
        script=read("page.js"),
        vega=charts.library() if page.charts else "",
        data={"charts": [list(group.specs.values()) for group in page.charts], "galleries": opened},
    )
