"""The tables as Markdown, HTML and LaTeX, and the pictures: scores over budgets, and bases with distilled images."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper.figure import set_figure
from experiments.paper.plans import CURVES, OF_LABELS
from experiments.paper.tables import SCORES, Table, scores_of, unit_of
from ssdd_jax.io.files import write_bytes
from ssdd_jax.report import to_markdown
from ssdd_jax.report.figures import COLOURS, LINES
from ssdd_jax.report.page import Choice, Page, render, text_table
from ssdd_jax.report.tables import CONTROL_LABELS


def as_markdown(tables: Sequence[Table]) -> str:
    """Return all tables in GitHub's Markdown."""
    notes = lambda table: "".join(f"\n{note}\n" for note in table.notes)
    parts = [f"## {table.title}\n\n{to_markdown(table.header, table.rows)}\n{notes(table)}" for table in tables]
    return "\n".join(parts)


def as_html(tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """Return one page in the look of a run's report; pictures are file names beside it, with what they show."""
    shown = [text_table(table.title, table.header, table.rows, table.notes) for table in tables]
    methods = dict.fromkeys(row.keys["method"] for table in shown for row in table.rows if "method" in row.keys)
    choices = [Choice(method, CONTROL_LABELS.get(method, method)) for method in methods]
    return render(Page("Tables of the paper", filters={"method": choices}, tables=shown, pictures=list(pictures.items())))


def as_latex(tables: Sequence[Table]) -> str:
    """Return all tables for a document that loads booktabs."""
    special = {"%": r"\%", "_": r"\_", "&": r"\&", "±": r"$\pm$", "–": "--", "#": r"\#", "²": r"$^2$"}
    escape = lambda text: "".join(special.get(character, character) for character in text.replace("`", ""))
    line = lambda cells: " & ".join(map(escape, cells)) + r" \\"
    parts = []
    for table in tables:
        columns = "l" + "r" * (len(table.header) - 1)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(' '.join([table.title + '.', *table.notes]))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def budgets_picture(rows: Sequence[Mapping[str, Any]], score: str) -> Any:
    """Return a figure of a score over budgets: means over seeds, with the range of seeds as a band; None with fewer than two budgets."""
    from matplotlib.figure import Figure

    main = [row for row in rows if row["student"] == "convnet" and row["own"]]
    found = scores_of(main, score, lambda row: (row["method"], row["num_pairs"]))
    if len({n for _, n in found}) < 2:
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="budget N (pairs)", ylabel=SCORES[score] + ("" if score == "repr_error" else ", %"))
    axes.spines[["top", "right"]].set_visible(False)
    methods = [name for name in (*CURVES, *OF_LABELS) if any(method == name for method, _ in found)]
    for place, method in enumerate(methods):
        points = sorted((n, values) for (name, n), values in found.items() if name == method)
        scaled = [np.array(values) * unit_of(score)[0] for _, values in points]
        budgets, colour = [n for n, _ in points], COLOURS[place % len(COLOURS)]
        style = LINES[place // len(COLOURS) % len(LINES)]
        axes.plot(budgets, [statistics.fmean(values) for values in scaled], style, marker="o", markersize=4, color=colour, label=method)
        axes.fill_between(budgets, [v.min() for v in scaled], [v.max() for v in scaled], color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({n for _, n in found})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def write_all(workdir: Path, tables: Sequence[Table], rows: Sequence[Mapping[str, Any]], sets: Sequence[Path]) -> None:
    """Write tables.md, tables.html and tables.tex, and the pictures as PNG of 300 dots per inch and, where they are drawn, PDF."""
    pictures: dict[str, str] = {}
    for score in ("linear", "repr_error"):
        figure = budgets_picture(rows, score)
        if figure is not None:
            for ending in ("png", "pdf"):
                figure.savefig(workdir / f"budgets-{score}.{ending}", dpi=300)
            pictures[f"budgets-{score}.png"] = f"{SCORES[score]} over budgets"
    for folder in sets:
        figure, name = set_figure(folder), folder.parent.name
        for ending in ("png", "pdf"):
            figure.savefig(workdir / f"{name}-figure.{ending}", dpi=300)
        pictures[f"{name}-figure.png"] = f"{name}: bases, synthetic images, views and the nearest real images"
    write_bytes(workdir / "tables.md", as_markdown(tables).encode())
    write_bytes(workdir / "tables.html", as_html(tables, pictures).encode())
    write_bytes(workdir / "tables.tex", as_latex(tables).encode())
