"""Print the tables of experiments/README.md from the results in experiments/results: python experiments/tables.py [--short] [FILE ...].

With --short, only what README.md shows of each: method, images x views, error and linear probe.
"""

import json
import sys
from pathlib import Path

from ssdd_jax.report import results_tables, to_markdown, views_table
from ssdd_jax.report.tables import NOTHING, results_table

RESULTS = Path(__file__).parent / "results"


def short_table(results: dict) -> tuple[list[str], list[list[str]]]:
    header, rows = results_table(results)
    named = [dict(zip(header, row, strict=True)) for row in rows]
    size = lambda row: row["images"] if row["views"] == NOTHING else f"{row['images']} x {row['views']}"
    scores = ("repr_error", "linear probe")
    return ["method", "images x views", *scores], [[row["method"], size(row), *(row[score] for score in scores)] for row in named]


def main(files: list[Path], short: bool = False) -> None:
    for file in files:
        results = json.loads(file.read_text())
        if short:
            print(to_markdown(*short_table(results)))
            continue
        data, budget = results["dataset"], results["budget"]
        size = f", N = {budget['num_pairs']} ({budget['scalars']} numbers)" if budget else ""
        print(f"### {file.stem}\n\n{data['name']}, {data['split']} split{size}")
        for title, table in results_tables(results).items():
            print(f"\n#### {title}\n\n{to_markdown(*table)}")
        views = views_table(results)
        if views:
            print(f"\n{to_markdown(*views)}")
        print()


if __name__ == "__main__":
    arguments = [name for name in sys.argv[1:] if name != "--short"]
    main([Path(name) for name in arguments] or sorted(RESULTS.glob("*.json")), "--short" in sys.argv)
