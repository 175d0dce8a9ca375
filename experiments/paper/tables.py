"""The paper's tables from the rows of the runs: scores, their spread, and the paper's numbers beside them."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from experiments.paper import published
from experiments.paper.plans import ABLATION_ROWS, AT_MAIN, BEYOND_ROWS, CURVES, OF_LABELS, Scale
from ssdd_jax.report.tables import CONTROL_LABELS, LOWER_IS_BETTER, NOTHING, Cell

Row = Mapping[str, Any]
SCORES = {"linear": "Linear evaluation", "few_1": "1 % of labels", "few_5": "5 % of labels", "knn": "k-NN", "repr_error": "repr_error"}


class Table(NamedTuple):
    """A table as text: title, header, rows, and lines below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def scores_of(rows: Iterable[Row], score: str, key: Callable[[Row], Any]) -> dict[Any, list[float]]:
    """Return the scores of every seed by key."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        if score in row:
            found.setdefault(key(row), []).append(row[score])
    return found


def unit_of(score: str) -> tuple[int, int]:
    """Return the factor and the decimals that a score is shown with: percent, or an error."""
    return (1, 3) if score in LOWER_IS_BETTER else (100, 1)


def text_of(values: Sequence[float] | None, score: str) -> Cell:
    """Return mean and sample standard deviation: percent, or an error."""
    if not values:
        return NOTHING
    factor, decimals = unit_of(score)
    scaled = [factor * value for value in values]
    mean = f"{statistics.fmean(scaled):.{decimals}f}"
    text = mean if len(scaled) < 2 else f"{mean} ± {statistics.stdev(scaled):.{decimals}f}"
    return Cell(text, statistics.fmean(scaled), -1 if score in LOWER_IS_BETTER else 1)


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[int, int]:
    """Return how many pairs of rows stand in the paper's order, and how many pairs there are in both."""
    both = [name for name in theirs if name in ours]
    pairs = list(combinations(both, 2))
    return sum((ours[a] > ours[b]) == (theirs[a] > theirs[b]) for a, b in pairs), len(pairs)


def crossed(
    title: str,
    methods: Sequence[str],
    columns: Sequence[Any],
    found: Mapping[tuple[str, Any], Sequence[float]],
    score: str,
    theirs: Mapping[str, Mapping[Any, float | None]],
    same_data: bool,
    absent: Mapping[tuple[str, Any], str],
) -> Table:
    """Return methods by columns; where the data are the paper's, its numbers stand in brackets, else a note compares the order of rows.

    Args:
        title: of the table.
        methods: rows, in order; those without any score are left out unless `absent` says why.
        columns: students, data sets or budgets.
        found: (method, column) -> the scores of all seeds.
        score: which one it is.
        theirs: the paper's numbers by method and column, if it has this table.
        same_data: whether it is on the paper's data.
        absent: (method, column) -> why a method does not exist there.
    """
    paper = lambda method, column: (theirs.get(method) or {}).get(column)

    def cell(method: str, column: Any) -> Cell:
        text = text_of(found.get((method, column)), score)
        beside = paper(method, column) if same_data and score == "linear" else None
        return Cell(f"{text} [{beside:.2f}]", text.value, text.better) if beside is not None else text

    shown = [name for name in methods if any((name, column) in found or (name, column) in absent for column in columns)]
    rows = [[CONTROL_LABELS.get(name, name), *(cell(name, column) for column in columns)] for name in shown]
    notes = [seeds_in_words({len(values) for values in found.values()})] if found else []
    if score == "linear" and same_data and theirs:
        notes.append("In brackets: Yu et al., 2025.")
    if score == "linear" and theirs and not same_data:
        counted = [agreement({m: statistics.fmean(found[m, c]) for m in theirs if (m, c) in found}, _numbers(theirs, c)) for c in columns]
        if total := sum(pairs for _, pairs in counted):
            notes.append(f"Order of the paper's rows: {sum(same for same, _ in counted)} of {total} pairs are as on CIFAR-100.")
    notes += [f"{name}: {reason}" for name, reason in {name: reason for (name, _), reason in absent.items()}.items()]
    return Table(f"{title}: {SCORES[score]}", ["method", *map(str, columns)], rows, notes)


def seeds_in_words(counts: set[int]) -> str:
    """Return how many seeds scores have."""
    if counts == {1}:
        return "One seed."
    return f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} seeds; mean ± sample standard deviation."


def _numbers(theirs: Mapping[str, Mapping[Any, float | None]], column: Any) -> dict[str, float]:
    return {method: value for method, row in theirs.items() if (value := row.get(column)) is not None}


def cross_architecture(rows: Sequence[Row], scale: Scale, absent: Mapping[tuple[str, int], str]) -> list[Table]:
    """Return the students' table, one for every score."""
    main = [row for row in rows if row["num_pairs"] == scale.main and row["student"] and row["own"]]
    first = {student: None for student in published.STUDENTS if any(row["student"] == student for row in main)}
    return _at_main_budget("Students", main, "student", list(first), tuple(SCORES), published.CROSS_ARCHITECTURE, scale, absent)


def downstream(rows: Sequence[Row], scale: Scale, absent: Mapping[tuple[str, int], str]) -> list[Table]:
    """Return the table over data sets, the source first."""
    main = [row for row in rows if row["num_pairs"] == scale.main and row["student"] == "convnet"]
    source = [row["dataset"] for row in main if row["own"]]
    scores = tuple(score for score in SCORES if score != "repr_error")
    return _at_main_budget("Downstream, ConvNet", main, "dataset", source, scores, published.DOWNSTREAM, scale, absent)


def _at_main_budget(
    title: str,
    rows: Sequence[Row],
    axis: str,
    first: Sequence[str],
    scores: Sequence[str],
    theirs: Mapping[str, Mapping[Any, float | None]],
    scale: Scale,
    absent: Mapping[tuple[str, int], str],
) -> list[Table]:
    """Return methods by `axis` at the main budget, a table for every score that there is; the columns `first` come first."""
    columns = list(dict.fromkeys([*first, *(row[axis] for row in rows)]))
    why = {(name, columns[0]): reason for (name, n), reason in absent.items() if n == scale.main} if columns else {}
    methods, same_data = ("none", *AT_MAIN, "full"), _is_papers(scale, scale.main)
    found = {score: scores_of(rows, score, lambda row: (row["method"], row[axis])) for score in scores}
    name = f"{title}, N = {scale.main}"
    return [crossed(name, methods, columns, found[score], score, theirs, same_data, why) for score in scores if found[score]]


def _is_papers(scale: Scale, num_pairs: int) -> bool:
    return scale.name == "paper" and scale.data == "cifar100" and num_pairs in published.BUDGETS


def budgets(rows: Sequence[Row], scale: Scale, absent: Mapping[tuple[str, int], str]) -> list[Table]:
    """Return the table over budgets, and how much storage `ours` and the rows beyond the paper save."""
    main = [row for row in rows if row["student"] == "convnet" and row["own"]]
    columns = sorted({row["num_pairs"] for row in main})
    found = {score: scores_of(main, score, lambda row: (row["method"], row["num_pairs"])) for score in SCORES}
    tables = [
        crossed(
            "Budgets N, ConvNet",
            (*CURVES, *OF_LABELS),
            columns,
            found[score],
            score,
            published.OVER_BUDGETS,
            _is_papers(scale, scale.main),
            absent,
        )
        for score in SCORES
        if found[score]
    ]
    least = {name: min(n) for name in ("ours", *BEYOND_ROWS) if (n := [row["num_pairs"] for row in main if row["method"] == name])}
    lines = [
        [f"{name}, N = {num_pairs}", SCORES[score], against, text]
        for name, num_pairs in least.items()
        for score in ("linear", "repr_error")
        for against in ("krr_st", "random")
        if (text := saving_in_words(found[score], score, (name, num_pairs), against))
    ]
    header = ["row", "score", "against", "storage at which that reaches it"]
    counted = "In bits: N is the storage of N pairs in numbers of 32 bits, whatever a row's numbers have."
    saved = Table("Storage saved", header, lines, [counted])
    return [*tables, saved] if lines else tables


def saving(curve: Sequence[tuple[int, float]], goal: float, lower_is_better: bool) -> float | None:
    """Return the budget at which a curve first reaches a goal, interpolated in log N between measured points; None if it never does.

    Example:
        >>> saving([(10, 50.0), (100, 60.0)], 55.0, False)
        31.62...
    """
    sign = -1 if lower_is_better else 1
    points = sorted(curve)
    if sign * points[0][1] >= sign * goal:
        return float(points[0][0])
    for (n, before), (m, after) in pairwise(points):
        if sign * after >= sign * goal:
            share = (goal - before) / (after - before)
            return float(np.exp(np.log(n) + share * (np.log(m) - np.log(n))))
    return None


def saving_in_words(found: Mapping[tuple[str, int], Sequence[float]], score: str, row: tuple[str, int], against: str) -> str:
    """Return how much storage another method needs for the score of a row at its budget, with the number of every seed.

    Nothing where that method has not been measured with more storage.
    """
    (_, least), goals = row, found.get(row, ())
    curve = {n: values for (name, n), values in found.items() if name == against and n >= least}
    seeds, most = min([len(goals), *map(len, curve.values())]), max(curve, default=0)
    if most <= least or not seeds:
        return ""
    lower = score in LOWER_IS_BETTER
    mean = saving([(n, statistics.fmean(values)) for n, values in curve.items()], statistics.fmean(goals), lower)
    each = [saving([(n, values[i]) for n, values in curve.items()], goals[i], lower) for i in range(seeds)]
    words = lambda n: f"{n / least:.1f} times" if n is not None else f"more than {most / least:g} times"
    return words(mean) + (f" (seeds: {', '.join(words(n) for n in each)})" if seeds > 1 else "")


def ablation(rows: Sequence[Row], scale: Scale, absent: Mapping[tuple[str, int], str]) -> list[Table]:
    """Return one line for every part that is taken away, all scores as columns."""
    del absent
    main = [row for row in rows if row["num_pairs"] == scale.main and row["student"] == "convnet" and row["own"]]
    scores = [score for score in SCORES if any(score in row for row in main)]
    lines = []
    for name in ABLATION_ROWS:
        of_method = [row for row in main if row["method"] == name]
        if of_method:
            first = of_method[0]
            cells = [text_of([row[score] for row in of_method if score in row], score) for score in scores]
            beside = published.ABLATION.get(name, {}).get("convnet") if _is_papers(scale, scale.main) else None
            if beside:
                cells[0] = Cell(f"{cells[0]} [{beside:.2f}]", cells[0].value, cells[0].better)
            lines.append([name, f"{first['num_images']} x {first['num_views']}", *cells])
    return [Table(f"Ablation, ConvNet, N = {scale.main}", ["method", "images x views", *(SCORES[score] for score in scores)], lines, [])]


BUILDERS = {"cross_architecture": cross_architecture, "downstream": downstream, "budgets": budgets, "ablation": ablation}
