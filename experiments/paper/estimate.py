"""How long a run takes, from the operations of its outer steps, its teacher's and the rate of this machine's products; and its memory."""

import time
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.cases import Case, Work
from experiments.bench.parts import outer_memory, outer_operations, teacher_operations
from experiments.paper.config import ABLATED
from experiments.paper.plans import Run, Scale
from ssdd_jax.cli import load_config
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.data import load_dataset
from ssdd_jax.data.prepare import Options
from ssdd_jax.data.published import PUBLISHED
from ssdd_jax.settings.parse import to_spec

# What steps reach of the rate of a large product: measured between a tenth (small networks) and all of it (the paper's).
SHARE = 0.25


@cache
def shape_of(scale: Scale) -> tuple[int, int, int]:
    """Return (H, W, C) of the source as the runs see it."""
    spec = to_spec(load_config(scale.base(scale.main)[0])).data
    if (shape := PUBLISHED[scale.data].shape if scale.data in PUBLISHED else ()) and not spec.channels:
        # The runs can then be listed before the files are there.
        return (spec.size or shape[0], spec.size or shape[1], shape[2])
    options = Options(spec.size, spec.fit, spec.channels, spec.on_bad_image, spec.ground, spec.overlap)
    data = load_dataset(scale.data, spec.data_dir, options)
    height, width, channels = next(iter(data.splits.values())).images.shape[1:]
    return height, width, channels


@cache
def rate() -> float:
    """Return this machine's products of large matrices, in operations per second."""
    side = 2048
    factor = jnp.ones((side, side))
    product = jax.jit(lambda a: a @ a).lower(factor).compile()
    product(factor).block_until_ready()
    started = time.perf_counter()
    product(factor).block_until_ready()
    return 2 * side**3 / (time.perf_counter() - started)


@cache
def outer_steps(scale: Scale, num_pairs: int, method: str) -> tuple[int, int]:
    """Return the operations of a method's outer steps and the bytes that one holds; 0 for a method without any, or of another kind."""
    base, _ = scale.base(num_pairs)
    spec = to_spec(load_config(base))
    # Close enough: what is taken away is little of it.
    method = "ours" if method in ABLATED else method
    if method not in spec.methods or spec.methods[method].kind != "regression":
        return 0, 0
    steps = num_steps(spec, spec.methods[method])
    if not steps:
        return 0, 0
    work = Work(Case(base, method, shape_of(scale), 50_000, 100, (f"num_pairs={num_pairs}",)))
    return steps * outer_operations(work), outer_memory(work)


@cache
def of_teacher(scale: Scale) -> int:
    """Return the operations of the teacher's pretraining."""
    base, _ = scale.base(scale.main)
    work = Work(Case(base, "random", shape_of(scale), 50_000, 100))
    return work.spec.teacher.steps * teacher_operations(work)


def estimate(scale: Scale, run: Run, counted: set[Any]) -> str:
    """Return in words how long a run takes and the memory of its largest outer step, without students and label sets.

    Args:
        scale: the scale.
        run: the run.
        counted: what earlier runs do; it is not counted again, and what this one does is added.
    """
    parts = {"teacher": lambda: of_teacher(scale)}
    for method in run.methods:
        for seed in run.seeds:
            parts[run.num_pairs, method, seed] = lambda method=method: outer_steps(scale, run.num_pairs, method)[0]
    total = sum(count() for part, count in parts.items() if part not in counted)
    counted |= set(parts)
    if not total:
        return "nothing new to distil"
    memory = max(outer_steps(scale, run.num_pairs, method)[1] for method in run.methods)
    took = f"about {in_words(total / (SHARE * rate()))} on this machine for teacher and outer steps ({total / 1e12:,.1f} TFLOP)"
    return f"{took}, {memory / 1e9:.1f} GB for the largest step" if memory else took


def in_words(seconds: float) -> str:
    """Return a time in the largest unit of which there are two.

    Example:
        >>> in_words(7200)
        '2 hours'
    """
    for unit, length in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
