"""Tables and pictures of a finished run, made only from the files in its folder."""

from ssdd_jax.report.compare import comparison_table, read_runs, write_comparison
from ssdd_jax.report.run import read_results
from ssdd_jax.report.tables import results_table, results_tables, score_columns, summarize, to_markdown, to_rich, views_table
from ssdd_jax.report.write import write_report

__all__ = [
    "comparison_table",
    "read_results",
    "read_runs",
    "results_table",
    "results_tables",
    "score_columns",
    "summarize",
    "to_markdown",
    "to_rich",
    "views_table",
    "write_comparison",
    "write_report",
]
