"""Time, operations and memory of every part of a run, and PyTorch's time: python -m experiments.bench [--quick] [--cases cifar100]

Each part alternates with the same part in PyTorch and with a large matrix product, which shows what this machine can do at that moment.
Results go to a JSON file as they come, and to the terminal as a table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.bench.cases import CASES, Case, Work
from experiments.bench.flops import count_operations
from experiments.bench.harness import OURS, PEAKS, cells, measure, product, result, table
from experiments.bench.parts import OUTER_PARTS, STAGES, Part, builders
from ssdd_jax.cores import available_cores
from ssdd_jax.runtime.allocation import keep_memory
from ssdd_jax.runtime.blas import one_blas_thread
from ssdd_jax.stages.provenance import device

OUT = Path(__file__).parents[1] / "measurements" / "bench.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    names, parts = [case.name for case in CASES], [build.__name__ for build in (*OUTER_PARTS, *STAGES)]
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"those whose name begins like this; any of {', '.join(names)}")
    parser.add_argument("--parts", nargs="+", metavar="PART", choices=parts, help=f"any of {', '.join(parts)}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--without-torch", action="store_true", help="measure only ours")
    parser.add_argument("--quick", action="store_true", help="run the small cases once, to see whether everything runs, not how fast")
    parser.add_argument("--check", action="store_true", help="compare one step with PyTorch's, and measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the table of a JSON file, and measure nothing")
    return parser.parse_args()


def hardware() -> dict[str, Any]:
    """Return the hardware and the versions that the numbers were measured with."""
    models = [line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "device": device(),
        "processor": models[0] if models else platform.processor(),
        "memory_gb": round(memory[0] / 1e6) if memory else None,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit.stdout.strip() or None,
    }


def _read(file: str) -> str:
    return Path(file).read_text() if Path(file).exists() else ""


def measured(work: Work, options: argparse.Namespace, side: int, peaks: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of a case's parts."""
    others = {}
    if not options.without_torch:
        from experiments.bench.torch_step import references

        others = references(work)
    for name, build in builders(work):
        if options.parts and name not in options.parts:
            continue
        part: Part = build(work)
        seconds = measure({**peaks, **part.programs, **others.get(name, {})}, options.repetitions)
        ours = part.programs[OURS]
        counted = count_operations(ours.fn, *ours.shapes)
        yield {
            "case": work.case.name,
            "part": part.name,
            "shapes": part.shapes,
            "settings": work.case.settings,
            "operations": {"needed": part.needed, "counted": counted.total, "counted_by_xla": ours.operations(), "notes": counted.notes},
            **result(seconds, part.needed_by, side),
            "bytes": ours.memory(),
        }


def chosen(options: argparse.Namespace) -> list[Case]:
    wanted = tuple(options.cases or [""])
    return [case for case in CASES if case.name.startswith(wanted) and (case.small or not options.quick)]


def main() -> None:
    options = arguments()
    # A file or a pipe has no width to break a table for.
    console = Console(width=None if sys.stdout.isatty() else 240)
    if options.markdown:
        print(table(json.loads(options.markdown.read_text())))
        return
    if not options.without_torch:
        import torch

        torch.set_num_threads(available_cores())
        torch.manual_seed(0)
    if options.check:
        from experiments.bench.parity import parity

        for name, errors in parity().items():
            console.print(name, {what: f"{error:.1e}" for what, error in errors.items()})
        return
    # As a run does; PyTorch's parts have it, too.
    keep_memory()
    side = 1024 if options.quick else 3072
    options.repetitions = 1 if options.quick else options.repetitions
    peaks: dict[str, Any] = {PEAKS[0]: product(side)}
    results: dict[str, Any] = {**hardware(), "repetitions": options.repetitions, "product_side": side, "parts": []}
    if not options.without_torch:
        results |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
        factor = torch.randn(side, side)
        peaks[PEAKS[1]] = lambda: factor @ factor
    # A quick run must not replace a real one.
    out = options.out or (None if options.quick else OUT)
    with one_blas_thread():
        for case in chosen(options):
            for part in measured(Work(case), options, side, peaks):
                results["parts"].append(part)
                console.print(f"{part['case']}, {part['part']} ({part['shapes']}): {1e3 * part['seconds'][OURS]['median']:.4g} ms")
                if out:
                    out.write_text(json.dumps(results, indent=1) + "\n")
    head, rows = cells(results)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


if __name__ == "__main__":
    main()
