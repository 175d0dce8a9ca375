"""The cost of safety: finiteness checks in the jitted step, and checkpoints written while the run goes on.

python experiments/benchmark_safety.py [--repetitions 30]

The step is that of `fashion_mnist:cpu` (28 x 28 x 1, ConvNet 32-64-128 unless told otherwise, 256 real images, 10 images under four
views, a pool of five). Steps with and without the checks alternate, and the ratio is taken pair by pair. The floor of the checks is
reading the state once: its bytes divided by the bytes that this machine copies per second. A checkpoint costs the loop the time until
`save` returns; the time until everything is on disk is also given.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssdd_jax import Layout, feature_kernel, init_distilled, init_outer, make_learner, make_outer_step
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.runtime.health import not_finite

SHAPE, WIDTH = (28, 28, 1), 128


def seconds_of(run) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    arguments = parser.parse_args()

    images, reprs = (jax.random.normal(jax.random.key(i), (256, *shape)) for i, shape in enumerate((SHAPE, (WIDTH,))))
    views = ("identity", "rot90", "rot180", "rot270")
    layout = Layout(SHAPE, SHAPE, views, ("stored",) * 4)
    start = init_distilled(images[:10], jnp.stack([reprs[:10]] * 4), layout)
    learner = make_learner("convnet", tuple(arguments.widths), SHAPE, WIDTH)
    settings = dict(kernel=feature_kernel(learner), optimizer=optax.adam(1e-3), inner_optimizer=optax.sgd(0.1, 0.9))
    state = init_outer(jax.random.key(2), start, pool_size=5, **settings)
    step = make_outer_step(max_age=60, **settings)

    def checked_step(*inputs):
        new, metrics = step(*inputs)
        return new, metrics, not_finite(metrics, replace(new, pool=None))

    plain, checked = jax.jit(step), jax.jit(checked_step)
    runs = [lambda fn=fn: fn(state, images, reprs, jax.random.key(3)) for fn in (plain, checked)]
    for run in runs:
        jax.block_until_ready(run())
    times = [[seconds_of(run) for run in runs] for _ in range(arguments.repetitions)]
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    block = np.zeros(2**27, np.uint8)
    bandwidth = 2 * block.nbytes / min(seconds_of(block.copy) for _ in range(5))

    saving, writing = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        for number in range(arguments.repetitions):
            started = time.perf_counter()
            checkpoints.save(number, state)
            saving.append(time.perf_counter() - started)
            checkpoints.wait()
            writing.append(time.perf_counter() - started)

    results = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "widths": arguments.widths,
        "state_mb": num_bytes / 1e6,
        "step_seconds": spread([plain for plain, _ in times]),
        "checked_to_plain": spread([checked / plain for plain, checked in times]),
        "floor_of_the_checks_to_plain": num_bytes / bandwidth / statistics.median([plain for plain, _ in times]),
        "save_returns_seconds": spread(saving),
        "save_is_on_disk_seconds": spread(writing),
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
