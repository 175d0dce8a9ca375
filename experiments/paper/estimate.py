"""How long a run takes, from the operations of its outer steps and of the teacher's, and the rate of this machine's products."""

import time
from functools import cache

import jax
import jax.numpy as jnp

from experiments.bench.cases import Case, Work, outer_step, teacher_step
from experiments.paper.plans import Run, Scale
from ssdd_jax.cli import load_config
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.data import load_dataset
from ssdd_jax.data.prepare import Options
from ssdd_jax.settings.parse import to_spec

# What steps reach of the rate of a large product: measured between a tenth (small networks) and all of it (the paper's).
SHARE = 0.25


@cache
def shape_of(scale: Scale) -> tuple[int, int, int]:
    """Return (H, W, C) of the source as the runs see it."""
    spec = to_spec(load_config(scale.base(scale.main)[0])).data
    data = load_dataset(
        scale.data, spec.data_dir, Options(spec.size, spec.fit, spec.channels, spec.on_bad_image, spec.ground, spec.overlap)
    )
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
def operations(scale: Scale, num_pairs: int, method: str) -> int:
    """Return the operations of a method's outer steps; 0 for one without any, or of another kind."""
    base, _ = scale.base(num_pairs)
    spec = to_spec(load_config(base))
    if method not in spec.methods or spec.methods[method].kind != "regression":
        return 0
    steps = num_steps(spec, spec.methods[method])
    if not steps:
        return 0
    work = Work(Case(base, method, shape_of(scale), 50_000, 100, (f"num_pairs={num_pairs}",)))
    return steps * outer_step(work).needed


@cache
def of_teacher(scale: Scale) -> int:
    """Return the operations of the teacher's pretraining."""
    base, _ = scale.base(scale.main)
    work = Work(Case(base, "random", shape_of(scale), 50_000, 100))
    return work.spec.teacher.steps * teacher_step(work).needed


def estimate(scale: Scale, run: Run) -> str:
    """Return in words how long a run takes if nothing of it is there; students and label sets, which it does not count, come on top."""
    total = of_teacher(scale) + len(run.seeds) * sum(operations(scale, run.num_pairs, method) for method in run.methods)
    seconds = total / (SHARE * rate())
    words = f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f"about {words} for teacher and outer steps ({total / 1e12:,.1f} TFLOP), students and label sets not counted"
