"""What the page shows of one run, or of several next to each other."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssdd_jax.io.files import write_bytes
from ssdd_jax.report import charts
from ssdd_jax.report.gallery import Gallery, make_gallery
from ssdd_jax.report.nearest import FILE, read_nearest
from ssdd_jax.report.page import Charts, Choice, Page, Row, Table, render, text_table
from ssdd_jax.report.run import FINGERPRINT, VIEWS_CAPTION, Run, definitions, facts
from ssdd_jax.report.tables import (
    CONTROL_LABELS,
    NOTHING,
    Cell,
    Line,
    line_titles,
    result_lines,
    results_tables,
    score_columns,
    score_label,
    scores_in,
    summarize,
    views_table,
)

NO_PAGE = "index.html skipped: {} is not installed; pip install ssdd-jax[plots]"
NO_NEAREST = "nearest real images left out: {} lacks them; a run writes them if its teacher has represented the training images"
BEST_CAPTION = "Bold: the best distilled set of a student on a dataset at a budget."
BUDGET = "budget N"


def write_page(runs: Sequence[Run], file: Path, warnings: Sequence[str] = ()) -> list[str]:
    """Write the page of some runs, and return one line for each thing that was left out."""
    # One of earlier results says something else than the text next to it.
    file.unlink(missing_ok=True)
    try:
        galleries, notes = _galleries(runs)
        content = render(page_of(runs, galleries, warnings))
    except ImportError as error:
        return [NO_PAGE.format({"jinja2": "Jinja2"}.get(error.name or "", "vl-convert-python"))]
    except Exception as error:  # a page is not worth losing a run
        return [f"index.html skipped: {type(error).__name__}: {error}"]
    write_bytes(file, content.encode())
    return notes


def _galleries(runs: Sequence[Run]) -> tuple[list[Gallery], list[str]]:
    """Return the pictures of all sets, and a line if some are without the real images next to them."""
    galleries, lacking, num_sets = [], False, sum(len(run.sets) for run in runs)
    for run in runs:
        found = read_nearest(run.workdir)
        for method, drawn in run.sets.items():
            nearest = found.get(method)
            # Those of another set of this name are not its own.
            nearest = nearest if nearest is not None and nearest.digest == drawn.digest else None
            lacking |= nearest is None
            title = f"{method}, seed {drawn.seed}" if len(runs) == 1 else f"{run.label}: {method}, seed {drawn.seed}"
            galleries.append(make_gallery(run.label, method, drawn, nearest, title, num_sets))
    return galleries, [NO_NEAREST.format(FILE)] if lacking else []


def page_of(runs: Sequence[Run], galleries: Sequence[Gallery] = (), warnings: Sequence[str] = ()) -> Page:
    """Gather what the page of some runs shows."""
    lines = [(run, line) for run in runs for line in result_lines(run.results, run.results["rows"])]
    methods = list(dict.fromkeys(line.method for _, line in lines))
    styles = {method: charts.style(i) for i, method in enumerate(name for name in methods if name not in CONTROL_LABELS)}
    losses = {run.label: run.curves for run in runs if run.curves}
    drawn = []
    if budgets := _budget_charts(runs, styles):
        note = "Means over seeds; the band is one sample standard deviation to each side."
        drawn.append(Charts("Scores over the budget", note, budgets))
    if losses:
        note = "Each method's own loss, on a logarithmic scale: the mean over seeds, and a band from the smallest to the largest."
        note += " The runs' lines differ in width, the first is the widest." if len(losses) > 1 else ""
        drawn.append(Charts("Outer loss", note, {"loss": charts.loss_chart(losses, styles)}))
    more = []
    for run in runs:
        name = f"{run.label}: " if len(runs) > 1 else ""
        _, *others = results_tables(run.results).items()
        more += [text_table(name + title, *table) for title, table in others]
        if (views := views_table(run.results)) is not None:
            more.append(text_table(f"{name}Views", *views, [VIEWS_CAPTION]))
    own = lambda run: run.results["dataset"]["name"]
    firsts = {next((row["student"] for row in run.results["rows"] if row["student"]), "") for run in runs}
    shown = {"student": firsts, "dataset": {own(run) for run in runs}}
    values = {
        "run": [run.label for run in runs],
        "method": methods,
        "student": _distinct(line.student for _, line in lines),
        "dataset": _distinct(line.dataset for _, line in lines),
    }
    choice = lambda key, v: Choice(v, CONTROL_LABELS.get(v, v) if key == "method" else v, v in shown.get(key, (v,)), styles.get(v))
    sources = _distinct(told["source"] for run in runs for told in _published(run).values())
    notes = [BEST_CAPTION, *(f"In brackets: {source}." for source in sources), *_distinct(definitions(run.results) for run in runs)]
    results = Table("Results", *_long_table(lines, runs), notes)
    single = [(name, _short(name, text)) for name, text in facts(runs[0].results)] if len(runs) == 1 else []
    return Page(
        title=runs[0].results["name"] if len(runs) == 1 else f"{', '.join(run.label for run in runs)} compared",
        facts=[*single, *([("Hardware", hardware)] if single and (hardware := runs[0].results.get("device")) else [])],
        warnings=warnings,
        filters={key: [choice(key, v) for v in found] for key, found in values.items() if len(found) > 1},
        tables=[results, *([_runs_table(runs)] if len(runs) > 1 else [])],
        charts=drawn,
        more_tables=more,
        galleries=galleries,
    )


def joined_table(lines: Sequence[tuple[Run, Line]], runs: Sequence[Run]) -> tuple[list[str], list[list[Cell]]]:
    """Return the header and the rows of some runs' lines, with columns for what they differ in."""
    several = len(runs) > 1
    keys = {
        "run": lambda run, line: Cell(run.label) if several else NOTHING,
        "student": lambda run, line: Cell(line.student) if line.student else NOTHING,
        "dataset": lambda run, line: Cell(line.dataset),
    }
    told = {title: [cell(*pair) for pair in lines] for title, cell in keys.items()}
    if several:
        told[BUDGET] = [budget_cell(run) for run, _ in lines]
    titles = [title for title, cells in told.items() if len({cell for cell in cells if cell != NOTHING}) > 1]
    method, *others = line_titles([line for _, line in lines])
    before = ["run"] if "run" in titles else []
    header = [*before, method, *(title for title in titles if title != "run"), *others]
    cell = lambda i, title: told[title][i] if title in told else lines[i][1].cells.get(title, NOTHING)
    return header, [[cell(i, title) for title in header] for i in range(len(lines))]


def budget_cell(run: Run) -> Cell:
    """Return a run's budget in pairs."""
    budget = run.results["budget"]
    return Cell(f"{budget['num_pairs']:,}", budget["num_pairs"]) if budget else NOTHING


def _long_table(lines: Sequence[tuple[Run, Line]], runs: Sequence[Run]) -> tuple[list[str], list[Row]]:
    header, cells = joined_table(lines, runs)
    rows = []
    for (run, line), of_line in zip(lines, cells, strict=True):
        known = {"run": run.label, "method": line.method, "student": line.student, "dataset": line.dataset}
        group = (budget_cell(run), line.student, run.results["dataset"]["fingerprint"], line.dataset)
        keys = {key: value for key, value in known.items() if value is not None}
        rows.append(Row(_with_published(of_line, header, run, line), keys, None if line.is_control else group))
    return header, rows


def _published(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return what publications report for a run's own dataset and budget, by method; see `ssdd_jax.settings.evaluation.PublishedSpec`."""
    dataset, budget = run.results["dataset"], run.results["budget"] or {}
    own = (dataset["name"], budget.get("num_pairs")) if dataset["split"] == "test" else None
    return {method: of for method, of in run.results.get("published", {}).items() if (of["dataset"], of["num_pairs"]) == own}


def _with_published(cells: Sequence[Cell], header: Sequence[str], run: Run, line: Line) -> list[Cell]:
    """Return the cells of a line with the published number in brackets, if there is one."""
    told = _published(run).get(line.method)
    if told is None or line.student not in told["students"] or line.dataset != told["dataset"]:
        return list(cells)
    title, number = score_label(told["score"], score_columns(run.results)), told["values"][told["students"].index(line.student)]
    beside = lambda cell: Cell(f"{cell} [{number:.2f}]", cell.value, cell.better)
    return [beside(cell) if of == title else cell for cell, of in zip(cells, header, strict=True)]


def _runs_table(runs: Sequence[Run]) -> Table:
    """Return what the runs are about, one row per run."""
    of_run = {run.label: {name: _short(name, text) for name, text in facts(run.results)} for run in runs}
    names = list(dict.fromkeys(name for found in of_run.values() for name in found))
    rows = [
        Row([Cell(label), *(Cell(of[name]) if name in of else NOTHING for name in names)], {"run": label}) for label, of in of_run.items()
    ]
    return Table("Runs", ["run", *names], rows, prose=True)


def _budget_charts(runs: Sequence[Run], styles: charts.Styles) -> dict[str, dict[str, Any]]:
    """Return the charts of scores over the budget, by score, student and dataset; none unless there are several budgets."""
    points: dict[Any, list[dict[str, Any]]] = {}
    titles: dict[str, str] = {}
    for run in runs:
        rows, columns, budget = run.results["rows"], score_columns(run.results), run.results["budget"]
        for score in scores_in(rows, columns) if budget else ():
            titles[score] = score_label(score, columns)
            unit = 1 if score == "repr_error" else 100
            for entry in summarize([row for row in rows if row["method"] in styles and score in row], columns):
                mean, std = (unit * (value or 0) for value in entry[score].values())
                point = {"run": run.label, "method": entry["method"], "pairs": budget["num_pairs"], "mean": round(mean, 4)}
                place = (score, entry["student"], entry["dataset"], run.results["dataset"]["fingerprint"])
                points.setdefault(place, []).append(point | {"low": round(mean - std, 4), "high": round(mean + std, 4)})
    points = {place: found for place, found in points.items() if len({point["pairs"] for point in found}) > 1}
    differ = [len({place[i] for place in points}) > 1 for i in range(4)]
    found = {}
    for (score, student, dataset, fingerprint), of_place in points.items():
        parts = [titles[score], student, dataset, fingerprint[:6]]
        # Of datasets of one name only the fingerprint tells which is which.
        name = ", ".join(part for i, part in enumerate(parts) if i == 0 or differ[i])
        title = titles[score] + ("" if score == "repr_error" else ", %")
        found[name] = charts.budget_chart(of_place, title, styles)
    return found


def _short(name: str, text: str) -> str:
    """Return as much of a fact as tells one run from another."""
    return text[:12] if name == FINGERPRINT else text


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))
