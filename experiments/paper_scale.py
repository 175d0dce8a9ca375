"""Paper-scale `ours` on Fashion-MNIST padded to 32 pixels, with a ResNet18 teacher, on one accelerator:

python experiments/paper_scale.py --workdir runs/paper_scale [--seconds 570]

One command does everything: the outer step in float32, TF32 and bfloat16 (time, utilisation, memory), teacher, 30,000 outer steps and
evaluation in bfloat16 from end to end, and the effect of each precision on `repr_error` after fewer steps from the same teacher. After
--seconds it ends with status 75 if there is more to do, and the same command goes on; 0 when everything is done. Needs the data, see
docs/data.md. With --smoke everything runs in minutes on two cores, but the numbers mean nothing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# Dense products of an H100 SXM and an H200 according to their data sheets, in operations per second.
PEAK = {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12}
STOPPED = 75


def step_at(precision: str, smoke: bool, num_steps: int) -> dict:
    """Return time, utilisation and memory of the outer step as a run compiles it, many steps per dispatch, on random images."""
    import jax
    import jax.numpy as jnp

    from experiments.bench.cases import Case, Work, outer_step
    from experiments.bench.harness import spread
    from ssdd_jax.runtime.memory import step_bytes

    config = "fashion_mnist:smoke" if smoke else "fashion_mnist"
    settings = (f"outer.precision={precision}", "methods.ours.view_targets=('stored','network','network','network')")
    work = Work(Case(config, "ours", (32, 32, 1), 60_000, 10, settings))
    needed = outer_step(work).needed
    step = work.outer_step()
    images, reprs = work.normal(work.spec.outer.batch_size, 32, 32, 1), work.normal(work.spec.outer.batch_size, work.width)

    def many(state, images, reprs):
        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(lambda state, key: (step(state, images, reprs, key)[0], None), state, keys)[0]

    state = work.start(jax.random.key(1))
    compiled = jax.jit(many, donate_argnums=0).lower(state, images, reprs).compile()
    state, seconds = jax.block_until_ready(compiled(state, images, reprs)), []
    for _ in range(5):
        started = time.perf_counter()
        state = jax.block_until_ready(compiled(state, images, reprs))
        seconds.append((time.perf_counter() - started) / num_steps)
    kind = jax.devices()[0].device_kind
    known = any(name in kind for name in ("H100", "H200"))
    side = 1024 if smoke else 8192
    factor = jnp.ones((side, side), jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a: a @ a).lower(factor).compile()
    product(factor).block_until_ready()
    started = time.perf_counter()
    for _ in range(10):
        result = product(factor)
    result.block_until_ready()
    rate = 10 * 2 * side**3 / (time.perf_counter() - started)
    fastest = spread(seconds)
    return {
        "device": kind,
        "shapes": f"{work.spec.outer.batch_size} real images, {work.plan.num_images} images x 4 views, {work.spec.pool.size} members",
        "seconds": fastest,
        "operations": needed,
        "share_of_data_sheet": needed / fastest["median"] / PEAK[precision] if known else None,
        "share_of_product_rate": needed / fastest["median"] / rate,
        "memory_bytes": step_bytes(compiled),
    }


class Until:
    """The remaining time of this call."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def run(args: list[str], until: Until) -> int:
    """Run a command until the time is up, then ask it to stop with a checkpoint; return its status."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-m", "ssdd_jax.main", *args], cwd=REPOSITORY, env=environment) as process:
        try:
            return process.wait(max(until.left - 30, 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--step", choices=PRECISIONS, help="measure the outer step at this precision in this process, and print it")
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step_at(options.step, options.smoke, 2 if options.smoke else 20)))
        return
    sys.exit(everything(options.workdir, options.smoke, Until(options.seconds)))


def everything(workdir: Path, smoke: bool, until: Until) -> int:
    """Continue with the remaining work, keep results in workdir/paper_scale.json, and return the exit status."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "paper_scale.json"
    known = json.loads(file.read_text()) if file.is_file() else {"steps": {}, "seconds": {}, "repr_error": {}}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    known |= {"command": " ".join(["python", "experiments/paper_scale.py", *sys.argv[1:]]), "commit": commit.stdout.strip() or None}

    def keep() -> None:
        file.write_text(json.dumps(known, indent=1) + "\n")

    for precision in PRECISIONS:
        if precision in known["steps"]:
            continue
        if until.left < 90:
            return STOPPED
        command = [sys.executable, __file__, "--workdir", str(workdir), "--step", precision, *(["--smoke"] if smoke else [])]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            # For instance out of memory, which is a result too.
            print(done.stderr, file=sys.stderr)
        known["steps"][precision] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"status": done.returncode}
        keep()

    config = ["--config", "fashion_mnist:smoke" if smoke else "fashion_mnist", "--config.only=ours"]
    short = 4 if smoke else 3000
    whole = [*config, "--config.teacher.precision=bfloat16", "--config.seeds=(0,)"]
    runs = {"whole": [*whole, "--config.outer.precision=bfloat16"]}
    runs |= {f"short-{p}": [*whole, f"--config.outer.precision={p}", f"--config.methods.ours.steps={short}"] for p in PRECISIONS}
    for name, args in runs.items():
        if name in known["repr_error"]:
            continue
        if until.left < 60:
            return STOPPED
        folder = workdir / name
        if name != "whole" and not folder.exists():
            # The same teacher for all of them.
            for kept in (workdir / "whole" / "checkpoints").glob("[tr]e*-*"):
                shutil.copytree(kept, folder / "checkpoints" / kept.name)
        started = time.monotonic()
        status = run([*args, "--workdir", str(folder)], until)
        known["seconds"][name] = known["seconds"].get(name, 0.0) + time.monotonic() - started
        if status == 0:
            rows = json.loads((folder / "results.json").read_text())["rows"]
            known["repr_error"][name] = [row["repr_error"] for row in rows if row["method"] == "ours"]
        keep()
        if status:
            return status
    return 0


if __name__ == "__main__":
    main()
