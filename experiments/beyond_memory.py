"""Distil from a folder of images whose pixels do not fit into the memory that the process may use, evaluate, and show what it uses.

python experiments/beyond_memory.py [--images 175000] [--side 64] [--limit_gb 1]

The limit is a memory control group if the user may create one (everything that the process touches counts, including files), and
RLIMIT_DATA otherwise (everything except files). Teacher, representations, bases, distilled sets, students and their features are made as
in any other run.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

GROUPS = Path("/sys/fs/cgroup/memory")


def write_images(folder: Path, count: int, side: int) -> None:
    """Write smooth random JPEGs into ten class folders of a train split, and a few into a test split."""
    random = np.random.RandomState(0)
    coarse = random.randint(0, 256, (512, 8, 8, 3), np.uint8)
    for split, number in (("train", count), ("test", 200)):
        for i in range(number):
            file = folder / split / f"class_{i % 10}" / f"{i:06d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.roll(coarse[random.randint(512)], random.randint(8, size=2), (0, 1)) ^ random.randint(0, 256, 3, np.uint8)
            Image.fromarray(pixels).resize((side, side)).save(file, quality=90)


def limited(limit: int) -> tuple[str, Path | None]:
    """Return how memory is limited, and the control group if there is one."""
    group = GROUPS / f"ssdd_jax_{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        return "RLIMIT_DATA", None
    return "control group", group


def watch(process: subprocess.Popen, peaks: dict[str, int]) -> None:
    """Record the largest values of the process's memory, in kB."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for key in ("RssAnon", "RssFile", "VmHWM"):
            if found := re.search(rf"{key}:\s+(\d+)", status):
                peaks[key] = max(peaks.get(key, 0), int(found[1]))
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=175_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--limit_gb", type=float, default=1.0)
    options = parser.parse_args()
    limit = int(options.limit_gb * 2**30)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", options.images, options.side)
        kind, group = limited(limit)

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        settings = [
            f"--config.data.source=folder:{folder / 'images'}",
            f"--config.data.cache={folder / 'cache'}",
            "--config.data.memory_gb=0.25",
            "--config.data.limit=0",
            "--config.teacher.steps=20",
            "--config.outer.steps=20",
            "--config.only=krr_st,basis",
            "--config.num_pairs=4",
            "--config.evaluation.controls=('none','teacher','full')",
        ]
        command = [sys.executable, "-m", "ssdd_jax.main", "--config", "arrays:smoke", "--workdir", str(folder / "run")]
        started, peaks = time.monotonic(), {}
        # glibc keeps memory that a thread has freed in that thread's arena; with one arena for all, compiling takes less.
        process = subprocess.Popen([*command, *settings], preexec_fn=enter, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        status = process.wait()
        watcher.join()
        numbers = {
            "pixels_gb": round(options.images * options.side**2 * 3 / 1e9, 3),
            "limit_gb": round(limit / 1e9, 3),
            "limited_by": kind,
            "exit_status": status,
            "seconds": round(time.monotonic() - started, 1),
            "peak_gb": {key: round(kilobytes * 1024 / 1e9, 3) for key, kilobytes in peaks.items()},
        }
        if group is not None:
            numbers["group_peak_gb"] = round(int((group / "memory.max_usage_in_bytes").read_text()) / 1e9, 3)
            numbers["group_refusals"] = int((group / "memory.failcnt").read_text())
            group.rmdir()
        print(json.dumps(numbers))
        sys.exit(status)


if __name__ == "__main__":
    main()
