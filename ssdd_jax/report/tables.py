"""results.json as tables: a header and rows of text, for Markdown and for the terminal."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

Row = Mapping[str, Any]
TextTable = tuple[list[str], list[list[str]]]

SCORES = ("repr_error", "probe_accuracy", "probe_accuracy_low")
SIZES = ("num_images", "num_views", "stored_scalars", "steps")
REFERENCE_LABELS = {"none": "no pretraining", "teacher_init": "teacher's network, untrained", "teacher": "teacher"}
NOTHING = "–"
# A column's padding and the blank that the box draws between columns.
GAP = 2


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Average the rows of a run over seeds.

    Args:
        rows: of results.json, one a method and seed.

    Returns:
        One summary a method, in order of first appearance: its sizes, its mean seconds, and {"mean", "std"} of every
        score with the sample standard deviation, None for a single seed.

    Raises:
        ValueError: the seeds of a method differ in size, so that no one line describes them.

    Example:
        >>> sizes = {"method": "ours", "num_images": 9, "num_views": 1, "stored_scalars": 99, "steps": 50}
        >>> rows = [sizes | {"seconds": 2.0, "repr_error": e, "probe_accuracy": e, "probe_accuracy_low": e} for e in (0.25, 0.75)]
        >>> summarize(rows)[0]["repr_error"]["mean"]
        0.5
    """
    summary = []
    for method, group in _by_method(rows).items():
        first = group[0]
        for size in SIZES:
            if any(row[size] != first[size] for row in group):
                raise ValueError(f"summarize: {method} has {size} {[row[size] for row in group]}, expected the same for every seed")
        summary.append(
            {
                "method": method,
                **{size: first[size] for size in SIZES},
                "seconds": statistics.fmean(row["seconds"] for row in group),
                **{score: _mean_std([row[score] for row in group]) for score in SCORES},
            }
        )
    return summary


def results_table(results: Mapping[str, Any]) -> TextTable:
    """Return the header and the rows of a run's main table: the references, then one row a method.

    Args:
        results: results.json.
    """
    header = ["method", "images", "views", "pairs", "numbers stored", "repr_error", "probe", "probe, few labels", "outer steps", "seconds"]
    references, rows = results.get("references", {}), []
    for name in sorted(references, key=lambda name: [*REFERENCE_LABELS, name].index(name)):
        label = REFERENCE_LABELS.get(name, name)
        probes = (_percent(_mean_std(references[name][score])) for score in ("probe_accuracy", "probe_accuracy_low"))
        rows.append([label, *[NOTHING] * 5, *probes, NOTHING, NOTHING])
    for method in summarize(results["rows"]):
        rows.append(
            [
                method["method"],
                f"{method['num_images']:,}",
                str(method["num_views"]),
                f"{method['num_images'] * method['num_views']:,}",
                f"{method['stored_scalars']:,} ({method['stored_scalars'] / results['budget']['scalars']:.1%})",
                _spread(method["repr_error"], lambda value: _bare(value, 3)),
                _percent(method["probe_accuracy"]),
                _percent(method["probe_accuracy_low"]),
                f"{method['steps']:,}",
                f"{method['seconds']:,.1f}" if method["seconds"] < 100 else f"{method['seconds']:,.0f}",
            ]
        )
    return header, rows


def views_table(results: Mapping[str, Any]) -> TextTable | None:
    """Return the header and the rows of the table of views, or None when no method has more than one view.

    One row a view: how far it moves the teacher's representation, and where each method takes its targets from, with the
    R^2 of its approximation network (mean over seeds) if it has one.

    Args:
        results: results.json.
    """
    groups = {method: group for method, group in _by_method(results["rows"]).items() if len(group[0]["views"]) > 1}
    if not groups:
        return None
    shifts = results.get("teacher", {}).get("shifts", {})
    rows = []
    for view in dict.fromkeys(view for group in groups.values() for view in group[0]["views"][1:]):
        cells = [_targets(view, group) for group in groups.values()]
        rows.append([view, _bare(shifts[view], 2) if view in shifts else NOTHING, *cells])
    return ["view", "teacher's shift", *groups], rows


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's Markdown, the first column to the left and the others to the right.

    Example:
        >>> print(to_markdown(["method", "probe"], [["ours", "76.1"]]))
        | method | probe |
        |:--|--:|
        | ours | 76.1 |
    """
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([line(header), "|:--" + "|--:" * (len(header) - 1) + "|", *map(line, rows)])


@dataclass(frozen=True)
class TerminalTable:
    """A table for rich to print. Where the terminal is too narrow, its columns go on below, with the first one repeated."""

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
        """Return the width that breaks no cell, and the header at blanks alone."""
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
    """Return a table for rich to print, split into parts where the terminal is too narrow."""
    return TerminalTable(header, rows, title)


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return groups


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _spread(score: Mapping[str, Any], text: Callable[[float], str]) -> str:
    return text(score["mean"]) if score["std"] is None else f"{text(score['mean'])} ± {text(score['std'])}"


def _percent(score: Mapping[str, Any]) -> str:
    return _spread(score, lambda value: f"{100 * value:.1f}")


def _bare(value: float, decimals: int) -> str:
    """Write a number without the zero before its point."""
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.removeprefix("-").startswith("0.") else text


def _targets(view: str, group: Sequence[Row]) -> str:
    first = group[0]
    if view not in first["views"]:
        return NOTHING
    kind = first["target_kinds"][first["views"].index(view)]
    r2 = [row["approximation"][view] for row in group if view in (row["approximation"] or {})]
    return f"{kind}, R² {_bare(statistics.fmean(r2), 2)}" if r2 else kind
