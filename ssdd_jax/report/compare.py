"""Several finished runs in one page and one text."""

from collections.abc import Sequence
from pathlib import Path

from ssdd_jax.errors import InputError
from ssdd_jax.io.files import write_bytes
from ssdd_jax.report.contents import joined_table, write_page
from ssdd_jax.report.run import FINGERPRINT, Run, definitions, facts, read_run
from ssdd_jax.report.tables import TextTable, main_rows, result_lines, to_markdown


def read_runs(workdirs: Sequence[str | Path]) -> list[Run]:
    """Read several finished runs.

    Args:
        workdirs: their folders; a folder's name is its run's label, or its path where two have the same name.

    Raises:
        InputError: there are fewer than two runs, one is given twice, or one of them is not there or has no results.
    """
    paths = [Path(workdir) for workdir in workdirs]
    found = [path.resolve() for path in paths]
    if len(found) < 2:
        raise InputError("a comparison needs two runs or more, one is given; give --workdir once for each")
    for path, resolved in zip(paths, found, strict=True):
        if found.count(resolved) > 1:
            raise InputError(f"--workdir {path} is given twice; give each run once")
        if not path.is_dir():
            raise InputError(f"--workdir {path}: no such folder, expected that of a finished run")
    names = [path.name for path in found]
    return [read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)]


def write_comparison(runs: Sequence[Run], folder: str | Path) -> list[str]:
    """Write results.md and index.html about several runs into a folder.

    Returns:
        One line for the user for everything that keeps their scores from being compared, or that was left out.
    """
    folder, warnings = Path(folder), differences(runs)
    sections = [f"# {', '.join(run.label for run in runs)} compared", *(f"**{warning}**" for warning in warnings)]
    for run in runs:
        lines = [f"- {name}: {text}" for name, text in facts(run.results) if name != FINGERPRINT]
        sections += [f"## {run.label}", "\n".join(lines)]
    sections += ["## Results", to_markdown(*comparison_table(runs)), *dict.fromkeys(definitions(run.results) for run in runs)]
    write_bytes(folder / "results.md", ("\n\n".join(sections) + "\n").encode())
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    return [*warnings, *notes, *write_page(runs, folder / "index.html", warnings)]


def comparison_table(runs: Sequence[Run]) -> TextTable:
    """Return the header and the rows of every run's main table in one."""
    header, rows = joined_table([(run, line) for run in runs for line in result_lines(run.results, main_rows(run.results))], runs)
    return header, [list(row) for row in rows]


def differences(runs: Sequence[Run]) -> list[str]:
    """Return lines on what keeps the runs' scores from being compared: other data, or another split."""
    kinds = {
        "different datasets": lambda dataset: (dataset["fingerprint"], f"{dataset['name']} {dataset['fingerprint'][:6]}"),
        "different splits": lambda dataset: (dataset["split"], dataset["split"]),
    }
    lines = []
    for what, of in kinds.items():
        told = [(run.label, *of(run.results["dataset"])) for run in runs]
        if len({key for _, key, _ in told}) > 1:
            lines.append(
                f"The runs are of {what}, whose scores do not compare: {', '.join(f'{label} of {text}' for label, _, text in told)}"
            )
    return lines
