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
ARGS += ["--config.methods.ours.view_targets=('stored', 'network', 'network', 'network')", "--config.methods.ours.network_steps=200"]
ARGS += ["--config.methods.ours.images=4"]
ARGS += ["--config.pool.max_age=40", "--config.pool.size=4", "--config.checkpoints.every=10", "--config.checkpoints.minutes=0.01"]
ARGS += ["--config.evaluation.updates=300", "--config.evaluation.protocols=('linear','few','knn','finetune')", "--config.log_every=5"]
ARGS += ["--config.protocols.finetune.steps=60", "--config.evaluation.controls=('none','teacher','full')"]


def start(workdir, cache, without=()):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "SSDD_JAX_CACHE": str(cache)}
    environment = {name: value for name, value in environment.items() if name not in without}
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


# What is there once a run has come so far, in order.
STAGES = {
    "start and data preparation": "",
    "teacher": "checkpoints/teacher-*",
    "representations and krr_st": "checkpoints/representations-*",
    "krr_st, seed 1": "distilled/krr_st/seed_0/manifest.json",
    "ours": "checkpoints/ours-*",
    "ours, joint phase": "checkpoints/ours-*/joint",
    "ours, seed 1": "distilled/ours/seed_0/manifest.json",
    "evaluation": "distilled/ours/seed_1/manifest.json",
    "table": "results.json",
    "student": "checkpoints/students/*",
}


def reached(workdir):
    """Return the last stage that a run has come to."""
    return [name for name, pattern in STAGES.items() if not pattern or any(workdir.glob(pattern))][-1]


def being_saved(workdir):
    # Folders come and go meanwhile.
    return {f"{folder}/{name}" for folder, names, _ in os.walk(workdir / "checkpoints") for name in names if "orbax-checkpoint-tmp" in name}


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


def wait_until(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def wait_for(process, seconds):
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill(workdir, cache, place):
    """Start a run and kill it some time after it has come to a place, or then while it saves; return where it was, or None."""
    process, before, names = start(workdir, cache), being_saved(workdir), list(STAGES)
    wait_until(process, lambda: names.index(reached(workdir)) >= names.index(place))
    wait_for(process, random.uniform(0.0, 3.0))
    saving = random.random() < 0.4
    if saving:
        wait_until(process, lambda: being_saved(workdir) - before)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return ("while saving" if saving else reached(workdir)) if alive else None


@pytest.mark.timeout(3600)
def test_killed_at_random_moments_of_all_stages_the_end_is_the_same(tmp_path, whole):
    random.seed(0)
    tally = Counter()
    for attempt in range(3):
        # Everything that it needs is made anew, the prepared data too.
        workdir, cache = tmp_path / f"run {attempt}", tmp_path / f"cache {attempt}"
        tally.update(filter(None, [kill(workdir, cache, place) for place in STAGES]))
        assert finish(workdir, cache) == whole
    print(f"{tally.total()} kills: {dict(tally)}")
    assert tally.total() >= 20
    assert tally["while saving"] >= 2
    assert len(tally) >= 6


@pytest.mark.timeout(3600)
def test_stopped_again_and_again_the_end_is_the_same(tmp_path, whole):
    random.seed(1)
    statuses = []
    for attempt in range(3):
        workdir, cache = tmp_path / f"run {attempt}", tmp_path / f"cache {attempt}"
        while not statuses or statuses[-1] != 0:
            process = start(workdir, cache)
            wait_for(process, random.uniform(2.0, 20.0))
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


def test_no_compilation_cache_gives_the_same_bits(tmp_path, whole):
    assert finish(tmp_path / "run", tmp_path / "cache", without=["JAX_COMPILATION_CACHE_DIR"]) == whole
