"""A run that is killed, wherever it is, ends like one that was not."""

import contextlib
import json
import os
import random
import shutil
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


def start(workdir, cache, before=(), without=()):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "SSDD_JAX_CACHE": str(cache)}
    environment = {name: value for name, value in environment.items() if name not in without}
    command = [*before, *ARGS, "--workdir", str(workdir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


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


def finish(workdir, cache, **how):
    process = start(workdir, cache, **how)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return outcome(workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    return finish(folder / "run", folder / "cache")


def at_start(process, workdir, seconds):
    """Wait some of the time that it takes until the data are there."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def at_work(process, workdir, seconds):
    """Wait until it has said what it found, and some time from there."""
    process.stdout.readline()
    at_start(process, workdir, seconds)


def while_saving(process, workdir, seconds):
    """Wait until it is writing a checkpoint, the one that it comes to after some time."""
    at_work(process, workdir, seconds)
    while process.poll() is None and not list(workdir.glob("checkpoints/**/*.orbax-checkpoint-tmp*")):
        time.sleep(0.0005)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_of_all_stages_the_end_is_the_same(tmp_path, whole):
    random.seed(0)
    tally = Counter()
    while tally.total() < 24:
        # Everything that it needs is made anew, the prepared data too.
        workdir, cache = tmp_path / f"run {tally.total()}", tmp_path / f"cache {tally.total()}"
        for wait in (at_start, *random.choices([at_work, while_saving], [3, 1], k=20)):
            process = start(workdir, cache)
            wait(process, workdir, random.uniform(0.5, 8.0))
            if process.poll() is not None:
                process.communicate()
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            tally[stage(workdir)] += 1
        assert finish(workdir, cache) == whole
    print(f"{tally.total()} kills: {dict(tally)}")
    assert tally["while saving a checkpoint"] >= 2
    assert len(tally) >= 6


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_stopped_again_and_again_the_end_is_the_same(tmp_path, whole):
    random.seed(1)
    statuses = []
    for attempt in range(3):
        workdir, cache = tmp_path / f"run {attempt}", tmp_path / f"cache {attempt}"
        while not statuses or statuses[-1] != 0:
            process = start(workdir, cache)
            random.choice([at_start, at_work, at_work])(process, workdir, random.uniform(0.5, 12.0))
            process.send_signal(random.choice([signal.SIGTERM, signal.SIGINT]))
            _, error = process.communicate()
            statuses.append(process.returncode)
            # While Python itself starts, a signal ends it as it ends any process.
            assert process.returncode in (0, 75, -signal.SIGTERM, -signal.SIGINT), error
            if process.returncode == 75:
                assert "run the same command to go on" in error
                assert "Traceback" not in error
        assert outcome(workdir) == whole
        statuses.append(None)
    print(f"statuses: {statuses}")
    assert statuses.count(75) >= 4


@pytest.mark.chaos
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_one_core_and_no_compilation_cache_give_the_same_bits(tmp_path, whole):
    assert finish(tmp_path / "run", tmp_path / "cache", before=["taskset", "-c", "0"], without=["JAX_COMPILATION_CACHE_DIR"]) == whole
