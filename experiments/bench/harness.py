"""Alternating measurements, and the table of their results.

A machine that is shared with other work may be slow now and fast a minute later. So programs to be compared alternate, A B A B, and the
reported ratio is the median over pairs of neighbours in time; so is the fraction of the machine's own rate of matrix products.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.runtime.memory import step_bytes

# Calls are repeated until a measurement takes at least this long (s); after the pause (s), threads that busy-wait for work have stopped.
MIN_SECONDS, PAUSE = 0.05, 0.2
# Uncounted calls after the pause: a step of 24 ms takes ten more when threads sleep and caches are cold, and a run does not pause.
WARM_CALLS = 2
# After this time (s) a part is not measured again, once it has the fewest repetitions.
MAX_SECONDS, MIN_REPETITIONS = 240.0, 3

PEAKS = ("product, jax", "product, torch")
OURS = "ours"


class Program:
    """A function (state, *args) -> (state, anything), compiled for its arguments; the state is donated and carried from call to call."""

    def __init__(self, fn: Callable, state: Any, *args: Any):
        # A copy, since donation destroys it.
        self.state, self.args = jax.tree.map(jnp.copy, state), args
        lowered = jax.jit(fn, donate_argnums=0).lower(self.state, *args)
        self.compiled = lowered.compile()
        self.fn, self.shapes = fn, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (self.state, *args))

    def __call__(self) -> None:
        self.state, out = self.compiled(self.state, *self.args)
        jax.block_until_ready((self.state, out))

    def _analysis(self) -> dict[str, float]:
        analysis = self.compiled.cost_analysis() or {}
        return analysis[0] if isinstance(analysis, list) else analysis

    def operations(self) -> int | None:
        """Return XLA's own count, which counts loop bodies once and includes elementwise work."""
        found = self._analysis().get("flops")
        return None if found is None else int(found)

    def memory(self) -> dict[str, int | None]:
        """Return bytes: read and written by XLA's program, of arguments and results counted once, and the peak of memory in use."""
        found = self._analysis().get("bytes accessed")
        size = lambda tree: sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        return {
            "accessed": None if found is None else int(found),
            "floor": size(self.shapes) + size(jax.eval_shape(self.fn, *self.shapes)),
            "peak": step_bytes(self.compiled),
        }


def product(side: int) -> Callable[[], None]:
    """Return a large float32 product at the networks' default precision, which measures the machine."""
    factor = jax.random.normal(jax.random.key(0), (side, side))
    compiled = jax.jit(lambda a: jnp.matmul(a, a)).lower(factor).compile()
    return lambda: jax.block_until_ready(compiled(factor))


def measure(contenders: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of one call of each contender, `repetitions` times alternating, each time after uncounted calls."""
    calls, warm = {}, {}
    for name, run in contenders.items():
        first = _seconds(run)
        is_long = first > 10 * MIN_SECONDS
        # The first call may find cold caches.
        calls[name] = 1 if is_long else max(1, round(MIN_SECONDS / _seconds(run)))
        warm[name] = 0 if is_long else WARM_CALLS
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    for number in range(repetitions):
        if number >= MIN_REPETITIONS and time.perf_counter() - started > MAX_SECONDS:
            break
        for name, run in contenders.items():
            time.sleep(PAUSE)
            for _ in range(warm[name]):
                run()
            seconds[name].append(_seconds(run, calls[name]))
    return seconds


def _seconds(run: Callable[[], Any], calls: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": float(np.min(values)), "max": float(np.max(values))}


def result(seconds: Mapping[str, Sequence[float]], needed: Callable[[str], int], side: int) -> dict[str, Any]:
    """Return what was measured: times, the machine's rate, the fraction of it that each contender reaches, and their times over ours.

    Args:
        seconds: by contender, as `measure` returns them; `PEAKS` are the products.
        needed: name of a contender -> its operations.
        side: side of the product's matrices.
    """
    peaks = {name: seconds[name] for name in PEAKS if name in seconds}
    # The larger of the two rates is the machine's.
    peak = min(peaks, key=lambda name: statistics.median(peaks[name]))
    rows = {name: values for name, values in seconds.items() if name not in peaks}
    share = lambda name: spread([needed(name) / t / (2 * side**3 / p) for t, p in zip(rows[name], peaks[peak], strict=True)])
    return {
        "seconds": {name: spread(values) for name, values in rows.items()},
        "peak": {"of": peak, "per_second": {name: 2 * side**3 / statistics.median(values) for name, values in peaks.items()}},
        "repetitions": len(rows[OURS]),
        "share_of_peak": {name: share(name) for name in rows},
        "ratio_to_ours": {
            name: spread([t / ours for t, ours in zip(values, rows[OURS], strict=True)]) for name, values in rows.items() if name != OURS
        },
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a markdown table, one row per part."""
    head, rows = cells(results)
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table; each contender that is compared with ours has a column, its time over ours."""
    others = list(dict.fromkeys(name for part in results["parts"] for name in part["ratio_to_ours"]))
    head = ["case", "part", "ms", "GFLOP", "share of product rate", "MB moved (least)", "peak MB", *(f"{name} / ours" for name in others)]
    return head, [_row(part, others) for part in results["parts"]]


def _row(part: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    number = lambda value: f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    mega = lambda value: "–" if value is None else number(value / 1e6)
    ratio = lambda name: f"{part['ratio_to_ours'][name]['median']:.2f}" if name in part["ratio_to_ours"] else "–"
    memory = part["bytes"]
    return [
        part["case"],
        part["part"],
        number(1e3 * part["seconds"][OURS]["median"]),
        number(part["operations"]["needed"] / 1e9),
        f"{100 * part['share_of_peak'][OURS]['median']:.0f} %",
        f"{mega(memory['accessed'])} ({mega(memory['floor'])})",
        mega(memory["peak"]),
        *map(ratio, others),
    ]
