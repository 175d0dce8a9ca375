"""The paper's scale on Fashion-MNIST padded to 32 pixels, with a ResNet18 teacher, on one accelerator:

python experiments/paper_scale.py --workdir runs/paper_scale [--seconds 570] [--parts steps] [--epochs 20 --outer_seconds 200]

Parts, all of them unless named: `steps`, the outer step of `ours` in float32, TF32 and bfloat16 and of `krr_st` in bfloat16 (time,
utilisation, memory); `torch`, the same in PyTorch, as it is and compiled; `whole`, teacher, outer steps and evaluation of random, krr_st,
basis and ours in bfloat16 from end to end; `short`, the effect of each precision on `repr_error` after fewer steps from the same teacher.
The paper has 30,000 outer steps, the teacher 200 epochs; --epochs has the teacher do fewer, --outer_seconds allows as many outer steps
as fit in that time. After --seconds it ends with status 75 if there is more to do, and the same command goes on; 0 when everything is
done. Needs the data, see docs/data.md. With --smoke everything runs in minutes on two cores, but the numbers mean nothing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# Dense products of an H100 SXM and an H200 according to their data sheets, in operations per second.
PEAK = {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12}
STOPPED = 75
# After this long the measurement of one step is given up, so that the others have their turn.
CHILD_SECONDS = 150
PARTS = ("steps", "torch", "whole", "short")
# Part, method, precision.
STEPS = [
    ("steps", "ours", "bfloat16"),
    ("steps", "ours", "tensorfloat32"),
    ("torch", "ours", "bfloat16"),
    ("steps", "krr_st", "bfloat16"),
    ("torch", "ours", "tensorfloat32"),
    ("torch", "krr_st", "bfloat16"),
    ("steps", "ours", "float32"),
]


def work_at(method: str, precision: str, smoke: bool) -> Any:
    """Return the paper's outer step of a method, on random images."""
    from experiments.bench.cases import Case, Work

    config = "fashion_mnist:smoke" if smoke else "fashion_mnist"
    views = ("methods.ours.view_targets=('stored','network','network','network')",) if method == "ours" else ()
    return Work(Case(config, method, (32, 32, 1), 60_000, 10, (f"outer.precision={precision}", *views)))


def say(what: str) -> None:
    """Print how far a process is, and when, so that what takes long can be seen afterwards."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def timed(call: Callable[[], None], count: int) -> dict[str, float]:
    """Return the seconds of one of `count` steps that a call does."""
    from experiments.bench.harness import spread

    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append((time.perf_counter() - started) / count)
    return spread(seconds)


def step_at(method: str, precision: str, smoke: bool, num_steps: int) -> dict:
    """Return time, utilisation and memory of the outer step as a run compiles it, many steps per dispatch, on random images."""
    import jax
    import jax.numpy as jnp

    from experiments.bench.parts import outer_operations, outer_shapes
    from ssdd_jax.runtime.memory import step_bytes

    work = work_at(method, precision, smoke)
    needed = outer_operations(work)
    step = work.outer_step()
    images, reprs = work.normal(work.spec.outer.batch_size, 32, 32, 1), work.normal(work.spec.outer.batch_size, work.width)

    def many(state, images, reprs):
        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(lambda state, key: (step(state, images, reprs, key)[0], None), state, keys)[0]

    state = work.start(jax.random.key(1))
    say("ready to compile")
    started = time.perf_counter()
    compiled = jax.jit(many, donate_argnums=0).lower(state, images, reprs).compile()
    compilation = time.perf_counter() - started
    say("compiled")

    def call() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, images, reprs))

    seconds = timed(call, num_steps)
    say(f"timed: {seconds}")
    kind = jax.devices()[0].device_kind
    known = any(name in kind for name in ("H100", "H200"))
    side = 1024 if smoke else 8192
    factor = jax.random.normal(jax.random.key(2), (side, side), jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a: a @ a).lower(factor).compile()
    rate = 2 * side**3 / timed(lambda: [product(factor) for _ in range(10)][-1].block_until_ready(), 10)["median"]
    return {
        "device": kind,
        "shapes": outer_shapes(work),
        "seconds": seconds,
        "compilation": compilation,
        "operations": needed,
        "share_of_data_sheet": needed / seconds["median"] / PEAK[precision] if known else None,
        "product_rate": rate,
        "share_of_product_rate": needed / seconds["median"] / rate,
        "memory_bytes": step_bytes(compiled),
    }


def torch_step_at(method: str, precision: str, smoke: bool, num_steps: int) -> dict:
    """Return the time of the same step in PyTorch, channels last, as it is and with compiled networks."""
    import torch

    from experiments.bench.torch_step import outer_of

    work = work_at(method, precision, smoke)
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    batch, found = work.spec.outer.batch_size, {}
    images, reprs = torch.randn(batch, 1, 32, 32), torch.randn(batch, work.width)
    for name, compiled in (("as it is", False), ("compiled", True)):
        outer = outer_of(work, torch.channels_last, half=precision == "bfloat16", compiled=compiled)

        def call(outer: Any = outer) -> None:
            for _ in range(num_steps):
                outer.step(images, reprs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        found[name] = timed(call, num_steps)
        say(f"timed {name}: {found[name]}")
        # If compilation fails or takes too long, the first is known.
        print(json.dumps({"torch": torch.__version__, "seconds": found}), flush=True)
    return {"torch": torch.__version__, "seconds": found}


class Until:
    """The remaining time of this call."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def environment() -> dict[str, str]:
    """Return the environment of processes that import the package and the scripts from here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def run(args: list[str], until: Until) -> int:
    """Run a command until the time is up, then ask it to stop with a checkpoint; return its status."""
    with subprocess.Popen([sys.executable, "-m", "ssdd_jax.main", *args], cwd=REPOSITORY, env=environment()) as process:
        try:
            return process.wait(max(until.left - 30, 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--epochs", type=int, default=200, help="of the teacher")
    parser.add_argument("--outer_seconds", type=float, default=0.0, help="for the outer steps of all methods; 0 does the paper's 30,000")
    parser.add_argument("--commit", help="hash of the code, where it is no git repository")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--step", nargs=3, metavar=("PART", "METHOD", "PRECISION"), help="measure this step in this process, and print it")
    options = parser.parse_args()
    if options.step:
        part, *which = options.step
        measure = torch_step_at if part == "torch" else step_at
        print(json.dumps(measure(*which, options.smoke, 2 if options.smoke else 20)))
        return
    sys.exit(everything(options, Until(options.seconds)))


def child(options: argparse.Namespace, part: str, method: str, precision: str, until: Until) -> dict:
    """Return what a process of its own measures: it has the device for itself, and may run out of memory, which is a result too."""
    smoke = ["--smoke"] if options.smoke else []
    command = [sys.executable, __file__, "--workdir", str(options.workdir), "--step", part, method, precision, *smoke]
    try:
        limit = max(min(until.left, CHILD_SECONDS), 5)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=False, timeout=limit)
        printed, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        printed, status = (error.stdout or b"").decode(), "out of time"
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}) | ({"status": status} if status else {})


def outer_steps(options: argparse.Namespace, known: dict) -> int:
    """Return how many outer steps every method does: the paper's, or as many thousands as fit in the time that is allowed."""
    if options.smoke:
        return 6
    measured = known["steps"].get("ours bfloat16", {})
    if not options.outer_seconds or "seconds" not in measured:
        return 30_000
    # In operations, krr_st and basis are half of `ours` together.
    return min(30_000, max(1, int(options.outer_seconds / measured["seconds"]["median"] / 1.5 / 1000)) * 1000)


def everything(options: argparse.Namespace, until: Until) -> int:
    """Continue with the remaining work, keep results in workdir/paper_scale.json, and return the exit status."""
    workdir, smoke = options.workdir, options.smoke
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "paper_scale.json"
    known = json.loads(file.read_text()) if file.is_file() else {"commands": [], "steps": {}, "torch": {}, "seconds": {}, "rows": {}}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    known["commands"].append(" ".join(["python", "experiments/paper_scale.py", *sys.argv[1:]]))
    known["commit"] = options.commit or commit.stdout.strip() or None

    def keep() -> None:
        file.write_text(json.dumps(known, indent=1) + "\n")

    for part, method, precision in [steps for steps in STEPS if steps[0] in options.parts]:
        if (name := f"{method} {precision}") in known[part]:
            continue
        if until.left < 60:
            return STOPPED
        say(f"{part} {name}")
        known[part][name] = child(options, part, method, precision, until)
        keep()

    known.setdefault("outer_steps", outer_steps(options, known))
    per_epoch = 60_000 // 256
    shared = ["--config", "fashion_mnist:smoke" if smoke else "fashion_mnist", "--config.teacher.precision=bfloat16", "--config.seeds=(0,)"]
    if not smoke:
        warm_up = min(10, max(1, options.epochs // 10))
        shared += [f"--config.teacher.steps={options.epochs * per_epoch}", f"--config.teacher.warmup_steps={warm_up * per_epoch}"]
    runs = {"whole": [*shared, "--config.outer.precision=bfloat16", f"--config.outer.steps={known['outer_steps']}"]}
    runs["whole"].append("--config.only=random,krr_st,basis,ours")
    for precision in PRECISIONS:
        few = [f"--config.outer.precision={precision}", f"--config.outer.steps={4 if smoke else 1000}", "--config.only=ours"]
        runs[f"short {precision}"] = [*shared, *few]
    for name, args in runs.items():
        if name in known["rows"] or name.split()[0] not in options.parts:
            continue
        if until.left < 60:
            return STOPPED
        folder = workdir / name.replace(" ", "_")
        if name != "whole" and not folder.exists():
            # The same teacher for all of them.
            for kept in (workdir / "whole" / "checkpoints").glob("[tr]e*-*"):
                shutil.copytree(kept, folder / "checkpoints" / kept.name)
        started = time.monotonic()
        status = run([*args, "--workdir", str(folder)], until)
        known["seconds"][name] = known["seconds"].get(name, 0.0) + time.monotonic() - started
        if status == 0:
            known["rows"][name] = json.loads((folder / "results.json").read_text())["rows"]
        keep()
        if status:
            return status
    return 0


if __name__ == "__main__":
    main()
