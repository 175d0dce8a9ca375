"""The paper's tables from one command: python -m experiments.paper TABLE --data DATA --scale paper|cpu --workdir DIR

TABLE is cross_architecture, downstream, budgets, ablation, figure or all; DATA is cifar100, fashion_mnist, arrays:FILE.npz or folder:ROOT.
It lists the runs that the table needs and does them, the first seed of all before the second of any. Tables share teachers, sets and rows,
nothing is computed twice, and after an interruption the same command goes on. After every run it writes what there is so far:
tables.md, tables.html, tables.tex and pictures in --workdir. --list only lists, --render only writes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.paper import plans, tables
from experiments.paper.plans import Scale
from experiments.runs import call, key_of, share
from ssdd_jax.errors import InputError
from ssdd_jax.io.files import write_json

CONFIG = Path(__file__).with_name("config.py")
DONE, ABSENT = "done.json", "absent.json"
"""Files of a workdir: seconds by run, and why rows are missing by budget. A run's own results know only the rows that it was asked for."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.paper", description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=(*plans.TABLES, "all"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--scale", choices=("paper", "cpu"), required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/paper"))
    parser.add_argument("--seeds", type=int, default=3, metavar="COUNT")
    parser.add_argument("--main", type=int, default=0, metavar="N", help="budget of the tables that have one; default 100, or 50 on CPUs")
    parser.add_argument("--budgets", type=int, nargs="+", default=[], metavar="N")
    parser.add_argument("--targets", nargs="+", default=[], metavar="DATA", help="data sets of the downstream table")
    parser.add_argument("--skip", nargs="+", default=[], choices=plans.ROWS, metavar="ROW", help="rows that can wait, such as dsa")
    parser.add_argument("--smoke", action="store_true", help="everything as small as can be; the numbers mean nothing")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--render", action="store_true")
    return parser.parse_args(argv)


def read(file: Path) -> dict[str, Any]:
    """Return the content of a file of the workdir, nothing if it is not there."""
    return json.loads(file.read_text()) if file.is_file() else {}


def gather(workdir: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, int], str]]:
    """Return the rows of all budgets, with `num_pairs` and whether the data set is the source, and why rows are missing."""
    rows: dict[Any, dict[str, Any]] = {}
    absent = {(name, int(num_pairs)): why for num_pairs, found in read(workdir / ABSENT).items() for name, why in found.items()}
    for file in sorted(workdir.glob("n*/results.json")):
        results = json.loads(file.read_text())
        num_pairs, source = int(file.parent.name[1:]), results["dataset"]["name"]
        # Rows of the present settings replace those that an earlier call left.
        for row in [*results.get("earlier", []), *results["rows"]]:
            place = num_pairs, row["method"], row["student"], row["dataset"], row["seed"]
            rows[place] = {**row, "num_pairs": num_pairs, "own": row["dataset"] == source}
    ordered = [rows[place] for place in sorted(rows, key=lambda place: (place[0], place[4]))]
    return ordered, absent


def render(workdir: Path, names: Sequence[str], scale: Scale) -> None:
    """Write the tables and pictures of what there is so far."""
    from experiments.paper.render import write_all

    rows, absent = gather(workdir)
    found = [table for name in names if name in tables.BUILDERS for table in tables.BUILDERS[name](rows, scale, absent)]
    sets = sorted((workdir / f"n{scale.main}" / "distilled").glob("*/seed_0")) if "figure" in names else []
    write_all(workdir, found, rows, [folder for folder in sets if folder.parent.name in ("krr_st", "basis", "ours")])


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    scale = plans.scale_of(options.scale, options.data, options.main, options.budgets, options.targets, options.smoke)
    names = plans.TABLES if options.table == "all" else (options.table,)
    runs = plans.all_runs(names, scale, range(options.seeds), options.skip)
    workdir: Path = options.workdir
    done, absent = read(workdir / DONE), read(workdir / ABSENT)
    if options.render:
        render(workdir, names, scale)
        return
    from experiments.paper.estimate import estimate, shape_of

    try:
        height, _, channels = shape_of(scale)
    except InputError as error:
        sys.exit(f"error: {error}")
    counted: set[Any] = set()
    for number, run in enumerate(runs):
        settings = run.settings(scale, height, channels)
        key, students = key_of(settings), ", ".join(run.students) or "all students"
        where = (
            f"N = {run.num_pairs}, {len(run.seeds)} seed(s): {', '.join(run.methods)}; {students}{', all targets' if run.targets else ''}"
        )
        took = f"done in {done[key]:.0f} s" if key in done else estimate(scale, run, counted)
        print(f"[{number + 1}/{len(runs)}] {where}: {took}", flush=True)
        if options.list or key in done:
            continue
        workdir.mkdir(parents=True, exist_ok=True)
        share(sorted(workdir.glob("n*")), workdir / run.folder)
        seconds = call(CONFIG, settings, workdir / "runs", workdir / run.folder)
        # Of the rows that this call was asked for, only its own reasons still hold.
        others = {name: why for name, why in absent.get(str(run.num_pairs), {}).items() if name not in run.methods}
        absent[str(run.num_pairs)] = others | read(workdir / run.folder / "results.json").get("absent", {})
        write_json(workdir / ABSENT, absent)
        done[key] = seconds
        write_json(workdir / DONE, done)
        render(workdir, names, scale)
    if not options.list:
        render(workdir, names, scale)
        print(f"tables: {workdir / 'tables.html'}")


if __name__ == "__main__":
    main()
