"""What many devices gain, and what they send to each other.

python experiments/benchmark_scaling.py [--steps 20] [--repetitions 3] [--devices 2 8 64] [--out experiments/measurements/scaling.json]

Measured: the outer step in one process on one core, and in two processes of one core each that are joined on the loopback interface,
with the same number of rows in total (strong) and with twice as many (weak). For comparison, two processes that are not joined run at the
same time on the same cores: what the machine gives to two at once, without communication. They alternate several times, and the fastest
of each is taken, since other work on the machine only slows a step down. Counted: the bytes of every collective of the compiled outer step
at the shapes of CIFAR-100, N = 100, `ours` (239 images under four views, 1,024 real images, ConvNet 128-256-512), compiled for --devices
devices of the host but not run. docs/scaling.md says what follows.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from math import prod
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "s64": 8, "u64": 8}
SIZES = {
    # side, channels, base side, images, image and representation bases, real rows, d, widths
    "small": dict(side=28, channels=1, base=14, count=16, bases=16, rows=128, width=64, widths=(32, 64)),
    "paper": dict(side=32, channels=3, base=16, count=239, bases=200, rows=1024, width=512, widths=(128, 256, 512)),
}


def build(side, channels, base, count, bases, rows, width, widths):
    """Return the jitted step, and a function that makes its inputs."""
    import jax
    import jax.numpy as jnp
    import optax

    from ssdd_jax.core.bases import PCA
    from ssdd_jax.core.distilled import Layout, init_distilled
    from ssdd_jax.core.outer import init_outer, make_outer_step
    from ssdd_jax.core.stores.factored import factored
    from ssdd_jax.kernels.feature import feature_kernel
    from ssdd_jax.nets import make_learner
    from ssdd_jax.runtime.devices import make_devices, placement

    shape, views = (side, side, channels), ("identity", "rot90", "rot180", "rot270")
    learner = make_learner("convnet", widths, shape, width)
    devices = make_devices()
    kernel = feature_kernel(learner, shard=placement(devices))
    settings = dict(kernel=kernel, optimizer=optax.adamw(1e-3), inner_optimizer=optax.sgd(0.1, 0.9))
    step = make_outer_step(max_age=1000, shard=placement(devices), **settings)

    def inputs():
        draw = lambda seed, *of: jax.random.normal(jax.random.key(seed), of)
        size = base * base * channels
        pca = lambda seed, n: PCA(jnp.zeros(n), draw(seed, bases, n) / n**0.5, jnp.ones(bases))
        layout = Layout(shape, (base, base, channels), views, ("stored",) * 4)
        images, reprs = draw(0, count, *shape), draw(1, 4, count, width)
        start = init_distilled(images, reprs, layout, image_store=factored(pca(2, size)), repr_store=factored(pca(3, width)))
        state = init_outer(jax.random.key(4), start, pool_size=2, **settings)
        return state, draw(5, rows, *shape), draw(6, rows, width), jnp.zeros((), jnp.int32)

    numbered = lambda state, images, reprs, number: step(state, images, reprs, jax.random.key(number))
    whole = {} if devices is None else {"out_shardings": devices.whole, "in_shardings": devices.whole}
    return jax.jit(numbered, **whole), inputs, devices


def measure(steps: int, scale: int) -> None:
    """Print the median seconds of a step with `scale` times the rows, on all devices."""
    import jax

    sizes = {**SIZES["small"], "rows": scale * SIZES["small"]["rows"], "count": scale * SIZES["small"]["count"]}
    step, inputs, devices = build(**sizes)
    args = inputs() if devices is None else devices.replicate(inputs())
    times = []
    for _ in range(steps + 3):
        started = time.perf_counter()
        jax.block_until_ready(step(*args))
        times.append(time.perf_counter() - started)
    print("seconds", statistics.median(times[3:]))


def count() -> None:
    """Print the collectives of the compiled step at the paper's shapes as JSON."""
    import jax

    step, inputs, _ = build(**SIZES["paper"])
    program = step.lower(*jax.eval_shape(inputs)).compile().as_text()
    print("collectives", json.dumps(collectives(program)))


def collectives(program: str) -> list[dict]:
    """Return the kind, the result's shapes and bytes, and the origin of every collective of an HLO text, largest first."""
    found = []
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", line)
        if match:
            parts = [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1])]
            parts = [(kind, dims) for kind, dims in parts if kind in BYTES]
            origin = re.search(r'op_name="([^"]*)"', line)
            found.append(
                {
                    "kind": match[2],
                    "bytes": sum(BYTES[kind] * prod(dims) for kind, dims in parts),
                    "shapes": [f"{kind}{dims}" for kind, dims in sorted(parts, key=lambda part: -prod(part[1]))[:4]],
                    "origin": origin[1][-100:] if origin else "",
                    "in_loop": bool(origin and "while/body" in origin[1]),
                }
            )
    return sorted(found, key=lambda entry: -entry["bytes"])


def start(args: list[str], core: int | None = None, devices: int = 1) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
    pinned = [] if core is None else ["--core", str(core)]
    command = [sys.executable, __file__, *args, *pinned]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said(process: subprocess.Popen, word: str) -> str:
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return next(line.partition(" ")[2] for line in output.splitlines() if line.startswith(f"{word} "))


def seconds(steps: int, scale: int, cores: list[int], join: bool = True) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = ["--steps", str(steps), "--scale", str(scale)]
    joined = lambda i: ["--join", f"127.0.0.1:{port},{len(cores)},{i}"] if join and len(cores) > 1 else []
    processes = [start([*args, *joined(i)], core) for i, core in enumerate(cores)]
    return max(float(said(process, "seconds")) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "experiments" / "measurements" / "scaling.json")
    parser.add_argument("--scale", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    if arguments.join:
        from ssdd_jax import compat

        address, number, mine = arguments.join.split(",")
        compat.connect(60, coordinator_address=address, num_processes=int(number), process_id=int(mine))
    if arguments.count:
        return count()
    if arguments.scale:
        return measure(arguments.steps, arguments.scale)

    from ssdd_jax.stages.provenance import device

    first, second = sorted(os.sched_getaffinity(0))[:2]
    # One process; two that are not joined; two with the same rows in total; two with twice as many.
    cases = {
        "one": (1, [first], True),
        "two_apart": (1, [first, second], False),
        "two_joined": (1, [first, second], True),
        "two_joined_twice_the_rows": (2, [first, second], True),
    }
    times = {name: [] for name in cases}
    for _ in range(arguments.repetitions):
        for name, case in cases.items():
            times[name].append(seconds(arguments.steps, *case))
    best = {name: min(values) for name, values in times.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY).stdout.strip()
    results = {
        "command": f"python experiments/benchmark_scaling.py --steps {arguments.steps} --repetitions {arguments.repetitions}",
        "hardware": device(),
        "commit": commit,
        "measured": {
            "sizes": SIZES["small"],
            "seconds": times,
            "load_of_the_machine": os.getloadavg()[1],
            "strong_efficiency": best["one"] / (2 * best["two_joined"]),
            "weak_efficiency": best["one"] / best["two_joined_twice_the_rows"],
            "weak_efficiency_to_two_apart": best["two_apart"] / best["two_joined_twice_the_rows"],
        },
        "collectives": {},
    }
    for devices in arguments.devices:
        found = json.loads(said(start(["--count"], devices=devices), "collectives"))
        outside = [entry for entry in found if not entry["in_loop"]]
        totals = {kind: sum(e["bytes"] for e in outside if e["kind"] == kind) for kind in COLLECTIVES.split("|")}
        results["collectives"][str(devices)] = {"total_bytes": totals, "number": len(outside), "largest": outside[:14]}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({**results, "collectives": {n: c["total_bytes"] for n, c in results["collectives"].items()}}, indent=1))


if __name__ == "__main__":
    main()
