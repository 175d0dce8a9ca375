"""results.json as tables: a header and rows of text, for Markdown and for the terminal."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from ssdd_jax.io.markdown import to_markdown as to_markdown

Row = Mapping[str, Any]


class Cell(str):
    """The text of a cell with the number that it shows.

    Attributes:
        value: what a column is sorted by; None if it has no number.
        better: 1 where the higher of two numbers is the better one, -1 where the lower is, 0 where neither is.

    Example:
        >>> cell = Cell("76.0 ± 1.4", 0.76, better=1)
        >>> cell == "76.0 ± 1.4", cell.value
        (True, 0.76)
    """

    value: float | None
    better: int

    def __new__(cls, text: str, value: float | None = None, better: int = 0) -> "Cell":
        """Make a cell."""
        cell = super().__new__(cls, text)
        cell.value, cell.better = value, better
        return cell


TextTable = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Line:
    """One line of a table of results.

    Attributes:
        method: name of the set or control.
        student: label of the student; None for controls that have none.
        dataset: what it is evaluated on.
        cells: by the title of their column.
    """

    method: str
    student: str | None
    dataset: str
    cells: Mapping[str, Cell]

    @property
    def is_control(self) -> bool:
        """Return whether it is about no distilled set."""
        return self.method in CONTROL_LABELS


# score -> its column heading, where results.json does not name it; scores of the few-label probe are named few_PERCENT.
SCORES = {
    "repr_error": "repr_error",
    "accuracy": "accuracy",
    "linear": "linear probe",
    "few": "{} % of labels",
    "knn": "k-NN",
    "finetune": "fine-tuned",
}
LOWER_IS_BETTER = ("repr_error",)
# The columns before and after those of the scores.
SIZE_TITLES, COST_TITLES = ("method", "images", "views", "pairs", "numbers stored"), ("outer steps", "seconds")
SIZES = ("num_images", "num_views", "stored_scalars", "bits", "steps")
CONTROL_LABELS = {
    "none": "no pretraining",
    "full": "all training images",
    "teacher_init": "teacher's network, untrained",
    "teacher": "teacher",
}
NOTHING = Cell("–")
# A column's padding plus the blank that the box draws between columns.
GAP = 2


def score_columns(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of the scores that a run's protocols have, as results.json names them; older files name none."""
    return {score: title for about in results.get("protocols", {}).values() for score, title in about["columns"].items()}


def scores_in(rows: Sequence[Row], columns: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the scores that any of the rows has: those of `SCORES` in its order, then others in the order of `columns`."""
    kind = lambda key: key if key in SCORES else "few" if key.startswith("few_") else None
    others = [key for key in columns if kind(key) is None and any(key in row for row in rows)]
    known = dict.fromkeys(key for row in rows for key in row if kind(key) is not None)
    rank = lambda key: (list(SCORES).index(kind(key)), float(key.partition("_")[2]) if key.startswith("few_") else 0.0)
    return [*sorted(known, key=rank), *others]


def score_label(score: str, columns: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the heading of a score: that of `columns`, or the one that it has in `SCORES`."""
    if score in columns:
        return columns[score]
    return SCORES[score] if score in SCORES else SCORES["few"].format(score.removeprefix("few_"))


def summarize(rows: Sequence[Row], columns: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Average the rows of a run over seeds.

    Args:
        rows: rows of results.json, one per method, student, dataset and seed.
        columns: of `score_columns`.

    Returns:
        One summary per method, student and dataset, in order of first appearance: sizes and mean seconds if it is about a
        distilled set, and {"mean", "std"} of every score with the sample standard deviation, None for a single seed;
        "num_failed" is the number of seeds without scores.

    Raises:
        ValueError: the seeds differ in size, so that no single line describes them.

    Example:
        >>> rows = [{"method": "ours", "student": "vit", "dataset": "digits", "repr_error": e} for e in (0.25, 0.75)]
        >>> summarize(rows)[0]["repr_error"]["mean"]
        0.5
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["student"], row["dataset"]), []).append(row)
    summary = []
    for (method, student, dataset), group in groups.items():
        first = group[0]
        for size in SIZES:
            if any(row.get(size) != first.get(size) for row in group):
                sizes = [row.get(size) for row in group]
                raise ValueError(f"summarize: {method} has {size} {sizes}, expected the same for every seed")
        entry = {"method": method, "student": student, "dataset": dataset, "num_seeds": len(group)}
        failed = sum("failed" in row for row in group)
        entry |= {"num_failed": failed} if failed else {}
        entry |= {size: first[size] for size in SIZES if size in first}
        if all(row.get("seconds") is not None for row in group):
            entry["seconds"] = statistics.fmean(row["seconds"] for row in group)
        values = {score: [row[score] for row in group if score in row] for score in scores_in(group, columns)}
        summary.append(entry | {score: _mean_std(found) for score, found in values.items()})
    return summary


def main_rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the first student on the first dataset, and those of the controls that have no student."""
    students = [row["student"] for row in results["rows"] if row["student"] is not None]
    return [row for row in results["rows"] if row["student"] in (None, *students[:1]) and row["dataset"] == results["dataset"]["name"]]


def results_tables(results: Mapping[str, Any]) -> dict[str, TextTable]:
    """Return all tables of a run by title: the main one and, if there are several students or datasets, one per score across these."""
    columns = score_columns(results)
    students = list(dict.fromkeys(row["student"] for row in results["rows"] if row["student"] is not None))
    tables = {f"Results, {students[0]}" if len(students) > 1 else "Results": results_table(results)}
    by_axis = {
        "student": [row for row in results["rows"] if row["student"] is not None and row["dataset"] == results["dataset"]["name"]],
        "dataset": [row for row in results["rows"] if row["student"] in (None, *students[:1])],
    }
    for axis, rows in by_axis.items():
        if len({row[axis] for row in rows}) > 1:
            for score in scores_in(rows, columns):
                tables[f"{axis.capitalize()}s: {score_label(score, columns)}"] = cross_table(rows, axis, score, columns)
    return tables


def cross_table(rows: Sequence[Row], axis: str, score: str, columns: Mapping[str, str] = MappingProxyType({})) -> TextTable:
    """Return the header and the rows of one score: one row per method, one column per student or dataset.

    Args:
        rows: rows of results.json.
        axis: 'student' or 'dataset'.
        score: name of a score, such as 'linear'.
        columns: of `score_columns`.
    """
    summary = {(e["method"], e[axis]): e for e in summarize([row for row in rows if score in row or "failed" in row], columns)}
    header = list(dict.fromkeys(column for _, column in summary))
    methods = _controls_first(dict.fromkeys(method for method, _ in summary))
    cell = lambda entry: _score(score, entry) if entry else NOTHING
    lines = [[CONTROL_LABELS.get(m, m), *(cell(summary.get((m, column))) for column in header)] for m in methods]
    return ["method", *header], lines


def results_table(results: Mapping[str, Any]) -> TextTable:
    """Return the header and the rows of a run's main table: the controls, then one row per method.

    Args:
        results: content of results.json; a method in `absent`, which does not exist at this budget, has an empty line.
    """
    lines = result_lines(results, main_rows(results))
    header = line_titles(lines)
    return header, [[line.cells.get(title, NOTHING) for title in header] for line in lines]


def line_titles(lines: Sequence[Line]) -> list[str]:
    """Return the titles of the columns of some lines: what they have in common around all scores that any of them has."""
    scores = dict.fromkeys(title for line in lines for title in line.cells)
    return [*SIZE_TITLES, *(title for title in scores if title not in (*SIZE_TITLES, *COST_TITLES)), *COST_TITLES]


def result_lines(results: Mapping[str, Any], rows: Sequence[Row]) -> list[Line]:
    """Return one line per method, student and dataset among some rows of results.json, controls first; then those of absent methods."""
    columns = score_columns(results)
    titles, summary = {score: score_label(score, columns) for score in scores_in(rows, columns)}, summarize(rows, columns)
    order = _controls_first(dict.fromkeys(entry["method"] for entry in summary))
    lines = []
    for entry in sorted(summary, key=lambda entry: order.index(entry["method"])):
        number = lambda key, entry=entry: NOTHING if entry.get(key) is None else Cell(f"{entry[key]:,}", entry[key])
        pairs = entry["num_images"] * entry["num_views"] if entry.get("num_images") and entry.get("num_views") else None
        stored, seconds = number("stored_scalars"), entry.get("seconds")
        if stored != NOTHING and results["budget"]:
            stored = Cell(f"{stored} ({entry['stored_scalars'] / results['budget']['scalars']:.1%})", stored.value)
        if entry.get("bits", 32) != 32:
            stored = Cell(f"{stored}, in {entry['bits']} bits", stored.value)
        cells = {
            "method": Cell(CONTROL_LABELS.get(entry["method"], entry["method"])),
            "images": number("num_images"),
            "views": number("num_views"),
            "pairs": NOTHING if pairs is None else Cell(f"{pairs:,}", pairs),
            "numbers stored": stored,
            **{title: _score(score, entry) for score, title in titles.items()},
            "outer steps": number("steps"),
            "seconds": NOTHING if seconds is None else Cell(f"{seconds:,.1f}" if seconds < 100 else f"{seconds:,.0f}", seconds),
        }
        lines.append(Line(entry["method"], entry["student"], entry["dataset"], cells))
    absent = [method for method in results.get("absent", {}) if method not in order]
    return lines + [Line(method, None, results["dataset"]["name"], {"method": Cell(method)}) for method in absent]


def views_table(results: Mapping[str, Any]) -> TextTable | None:
    """Return the header and the rows of the table of views, or None if no method has more than one view.

    One row per view: how far it moves the teacher's representation, and where each method takes its targets from, with the
    R^2 of its approximation network (mean over seeds) if there is one.

    Args:
        results: content of results.json.
    """
    groups: dict[str, list[Row]] = {}
    for row in main_rows(results):
        if len(row.get("views") or ()) > 1:
            groups.setdefault(row["method"], []).append(row)
    if not groups:
        return None
    shifts = results.get("teacher", {}).get("shifts", {})
    rows = []
    for view in dict.fromkeys(view for group in groups.values() for view in group[0]["views"][1:]):
        cells = [_targets(view, group) for group in groups.values()]
        rows.append([view, _bare(shifts[view], 2) if view in shifts else NOTHING, *cells])
    return ["view", "teacher's shift", *groups], rows


@dataclass(frozen=True)
class TerminalTable:
    """A table for rich to print. If the terminal is too narrow, its columns continue below, with the first one repeated."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part, columns in enumerate(self._parts(options.max_width)):
            if part:
                yield Text()
            table = RichTable(title=None if part else self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0))
            table.show_edge = table.pad_edge = False
            for column in columns:
                table.add_column(Text(self.header[column]), justify="right" if column else "left", width=self._width(column))
            for row in self.rows:
                table.add_row(*(Text(row[column]) for column in columns))
            yield table

    def _width(self, column: int) -> int:
        """Return the least width that breaks no cell, and the header only at blanks."""
        return max(map(len, [*self.header[column].split(), *(row[column] for row in self.rows)]))

    def _parts(self, max_width: int) -> list[list[int]]:
        parts, used = [], max_width
        for column in range(1, len(self.header)):
            used += GAP + self._width(column)
            if used > max_width:
                parts.append([0])
                used = self._width(0) + GAP + self._width(column)
            parts[-1].append(column)
        return parts


def to_rich(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> TerminalTable:
    """Return a table for rich to print, split into parts if the terminal is too narrow."""
    return TerminalTable(header, rows, title)


def _controls_first(methods: Iterable[str]) -> list[str]:
    methods = list(methods)
    return [name for name in CONTROL_LABELS if name in methods] + [name for name in methods if name not in CONTROL_LABELS]


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _spread(score: Mapping[str, Any], text: Callable[[float], str]) -> str:
    return text(score["mean"]) if score["std"] is None else f"{text(score['mean'])} ± {text(score['std'])}"


def _score(name: str, entry: Mapping[str, Any]) -> Cell:
    """Format a score of a summary: an error as a number, an accuracy in percent, and how many seeds failed."""
    failed = f" ({entry['num_failed']} failed)" if entry.get("num_failed") else ""
    if name not in entry:
        return Cell(NOTHING + failed)
    text = _spread(entry[name], lambda value: _bare(value, 3) if name == "repr_error" else f"{100 * value:.1f}")
    return Cell(text + failed, entry[name]["mean"], -1 if name in LOWER_IS_BETTER else 1)


def _bare(value: float, decimals: int) -> str:
    """Format a number without the zero before its point."""
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.removeprefix("-").startswith("0.") else text


def _targets(view: str, group: Sequence[Row]) -> str:
    first = group[0]
    if view not in first["views"]:
        return NOTHING
    kind = first["view_targets"][first["views"].index(view)]
    r2 = [row["approximation"][view] for row in group if view in (row["approximation"] or {})]
    return f"{kind}, R² {_bare(statistics.fmean(r2), 2)}" if r2 else kind
