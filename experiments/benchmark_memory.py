"""Memory of an outer step, by setting: compiled at the shapes of configs and, with --run, run once at the setting that takes least.

python -m experiments.benchmark_memory [--run] [--out experiments/measurements/memory.json]
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.__main__ import hardware
from experiments.bench.cases import CACHED, Case, Work
from ssdd_jax.runtime.memory import step_bytes

RESNET = ("student.net=resnet18", "pool.size=2")
# A config, its image shape, and settings that change its step.
CASES = {
    "cifar100, N = 100": ("cifar100", (32, 32, 3), ()),
    "cifar100, N = 5,000, 512 images a step": ("cifar100:n5000", (32, 32, 3), ()),
    "cifar100, N = 100, ResNet18 members": ("cifar100", (32, 32, 3), RESNET),
    "tiny_imagenet, N = 200, 512 images a step": ("tiny_imagenet", (64, 64, 3), ()),
}
SETTINGS = {
    "all rows at once": {"chunk_size": 0, "remat": False},
    "32 rows at once": {"chunk_size": 32, "remat": False},
    "32 rows at once, recomputed": {"chunk_size": 32, "remat": True},
}


def measure(config: str, shape: tuple[int, int, int], settings: tuple[str, ...], run: bool) -> dict[str, Any]:
    """Return the bytes of a step of `ours` at every setting and, if it is to run, its loss and seconds at the last one."""
    found: dict[str, Any] = {"bytes": {}}
    work, key = Work(Case(config, "ours", shape, 50_000, 100, (CACHED, *settings))), jax.random.key(0)
    batch = work.spec.outer.batch_size
    images, reprs = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch, work.width), jnp.float32)
    for name, memory in SETTINGS.items():
        step = jax.jit(work.outer_step(**memory), donate_argnums=0)
        compiled = step.lower(jax.eval_shape(work.start, key), images, reprs, key).compile()
        found["bytes"][name] = step_bytes(compiled)
    if run:
        operands = jax.block_until_ready((jax.jit(work.start)(key), work.normal(*images.shape), work.normal(*reprs.shape)))
        started = time.perf_counter()
        _, metrics = jax.block_until_ready(compiled(*operands, key))
        found |= {"loss": float(metrics["loss"]), "seconds": time.perf_counter() - started}
        # Peak of the process so far, in kB, including what compiling took.
        found["resident_peak"] = 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "measurements" / "memory.json")
    parser.add_argument("--run", action="store_true", help="run a step of each case")
    options = parser.parse_args()
    results = {"command": f"python -m experiments.benchmark_memory{' --run' * options.run}", **hardware(), "cases": {}}
    for name, case in CASES.items():
        results["cases"][name] = found = measure(*case, options.run)
        print(name, {setting: f"{size / 1e9:.2f} GB" for setting, size in found["bytes"].items()}, flush=True)
        if options.run:
            print(f"  a step ran: {found['seconds']:.1f} s, loss {found['loss']:.3g}", flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
