"""What the scripts share that make tables from several runs: a process for each, and one teacher for all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
# What does not depend on the method: the teacher, its representations, experts.
SHARED = ("teacher-*", "representations-*", "experts-*.npy")
# Files that are being written, and grow in place.
UNFINISHED = shutil.ignore_patterns("*.partial", "*.rows.json")


def key_of(settings: dict[str, Any]) -> str:
    """Return a name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def call(config: Path, settings: dict[str, Any], notes: Path, workdir: Path) -> float:
    """Do a run in a process of its own and return how many seconds it took.

    Args:
        config: a config file whose variant is a JSON file.
        settings: content of that file.
        notes: folder to write it to.
        workdir: of the run.

    Raises:
        SystemExit: with the run's status, if it is not 0.
    """
    file = notes / f"{key_of(settings)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")
    command = [sys.executable, "-m", "ssdd_jax.main", "--config", f"{config}:{file}", "--workdir", str(workdir), "--accept_changes"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    started = time.monotonic()
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        sys.exit(status)
    return time.monotonic() - started


def share(others: Iterable[Path], workdir: Path) -> None:
    """Give a new workdir what others have computed and what does not depend on the method, as links, so that it costs no space."""
    if workdir.exists():
        return
    for other in others:
        for pattern in SHARED:
            for source in (other / "checkpoints").glob(pattern):
                destination = workdir / "checkpoints" / source.name
                if destination.exists():
                    continue
                destination.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, destination, copy_function=os.link, ignore=UNFINISHED)
                else:
                    os.link(source, destination)
