"""A run that is killed, wherever it is, ends like one that was not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

# Long enough for every stage to be hit, two seeds and a joint phase included.
ARGS = [sys.executable, "-m", "ssdd_jax.main", "--config", "digits:smoke", "--config.only=krr_st,ours", "--config.seeds=(0, 1)"]
ARGS += ["--config.teacher.steps=150", "--config.outer.steps=120", "--config.methods.ours.joint=0.3", "--config.methods.ours.steps=120"]
ARGS += ["--config.methods.ours.target_kinds=('stored', 'network', 'network', 'network')", "--config.methods.ours.network_steps=200"]
ARGS += ["--config.methods.ours.images=4"]
ARGS += ["--config.pool.max_age=40", "--config.pool.size=4", "--config.checkpoints.every=10", "--config.checkpoints.minutes=0.01"]
ARGS += ["--config.evaluation.updates=300", "--config.evaluation.protocols=('linear','few','knn','finetune')", "--config.log_every=5"]
ARGS += ["--config.evaluation.finetune_steps=60", "--config.evaluation.controls=('none','teacher','full')"]


def start(workdir, cache):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "SSDD_JAX_CACHE": str(cache)}
    return subprocess.Popen([*ARGS, "--workdir", str(workdir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key != "seconds"}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def outcome(workdir):
    """Return what a run leaves, times aside."""
    sets = sorted(file.parent for file in workdir.glob("distilled/*/*/manifest.json"))
    arrays = {str(folder.relative_to(workdir)): (folder / "distilled.safetensors").read_bytes() for folder in sets}
    manifests = [without_times(json.loads((folder / "manifest.json").read_text())) for folder in sets]
    results = without_times(json.loads((workdir / "results.json").read_text()))
    return {"sets": arrays, "manifests": manifests, "metrics": (workdir / "metrics.jsonl").read_text(), "results": results}


def stage(workdir):
    """Return how far a run is, by its files."""
    if list(workdir.rglob("*.orbax-checkpoint-tmp*")):
        return "while saving a checkpoint"
    rows = workdir / "results.json"
    if list(workdir.glob("checkpoints/students/*/*/*")):
        return "student"
    if rows.exists():
        return "evaluation"
    folders = {file.parent.name.partition("-")[0] + "/" + file.name for file in workdir.glob("checkpoints/*/*")}
    for part in ("ours/joint", "ours/free", "ours/warm_up", "krr_st/free", "krr_st/warm_up"):
        if part in folders:
            return part
    names = [file.name for file in workdir.glob("checkpoints/*")]
    if any(name.startswith("representations") for name in names):
        return "representations"
    return "teacher" if names else "start and data preparation"


def finish(workdir, cache):
    process = start(workdir, cache)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return outcome(workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run leaves, and how long it takes."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder / "compiles", folder / "cache")
    started = time.monotonic()
    return finish(folder / "run", folder / "cache2"), time.monotonic() - started


def kill_again_and_again(workdir, cache, waits):
    """Start a run and kill it, once for every wait; return the stages that it was in."""
    stages = []
    for wait in waits:
        process = start(workdir, cache)
        wait(process)
        stages.append(stage(workdir) if process.poll() is None else "finished")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if stages[-1] == "finished":
            break
    return stages


def after(seconds):
    def wait(process):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    return wait


def while_saving(workdir, number):
    """Wait for the moment at which so many checkpoints have begun to be written."""

    def wait(process):
        seen = set()
        while process.poll() is None:
            seen |= {file.name for file in workdir.glob("checkpoints/**/*.orbax-checkpoint-tmp*")}
            if len(seen) >= number:
                return
            time.sleep(0.0005)

    return wait


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_of_all_stages_the_end_is_the_same(tmp_path, whole):
    expected, seconds = whole
    random.seed(0)
    tally, kills = Counter(), 0
    for attempt in range(12):
        if kills >= 24:
            break
        # Everything that it needs is made anew: the prepared data too.
        workdir, cache = tmp_path / f"run {attempt}", tmp_path / f"cache {attempt}"
        times = [after(random.uniform(0.1, 0.9) * seconds) for _ in range(2)]
        waits = [*times, while_saving(workdir, random.randint(1, 6)), after(random.uniform(0.3, 1.0) * seconds)]
        stages = kill_again_and_again(workdir, cache, waits)
        tally.update(stages)
        kills += sum(name != "finished" for name in stages)
        assert finish(workdir, cache) == expected
    print(f"{kills} kills: {dict(tally)}")
    assert kills >= 20
    assert tally["while saving a checkpoint"] >= 2
    assert len(tally) >= 6


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_stopped_again_and_again_the_end_is_the_same(tmp_path, whole):
    expected, seconds = whole
    random.seed(1)
    statuses = []
    for attempt in range(3):
        workdir, cache = tmp_path / f"run {attempt}", tmp_path / f"cache {attempt}"
        while not statuses or statuses[-1] != 0:
            process = start(workdir, cache)
            after(random.uniform(0.2, 0.7) * seconds)(process)
            process.send_signal(random.choice([signal.SIGTERM, signal.SIGINT]))
            _, error = process.communicate()
            statuses.append(process.returncode)
            # While Python itself starts, a signal ends it as it ends any process.
            assert process.returncode in (0, 75, -signal.SIGTERM, -signal.SIGINT), error
            if process.returncode == 75:
                assert "run the same command to go on" in error
                assert "Traceback" not in error
        assert outcome(workdir) == expected
        statuses.append(None)
    print(f"statuses: {statuses}")
    assert statuses.count(75) >= 4
