"""Print the tables of experiments/README.md from the results in experiments/results: python experiments/tables.py [FILE ...]."""

import json
import sys
from pathlib import Path

from ssdd_jax.report import results_tables, to_markdown, views_table

RESULTS = Path(__file__).parent / "results"


def main(files: list[Path]) -> None:
    for file in files:
        results = json.loads(file.read_text())
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
    main([Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json")))
