"""The command that makes the paper's tables, killed at random moments, ends with the same tables."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

KILLS = 10


@pytest.fixture
def data(tmp_path):
    draw = np.random.RandomState(0)
    images = {f"x_{split}": draw.randint(0, 256, (count, 16, 16, 3), np.uint8) for split, count in (("train", 200), ("test", 40))}
    np.savez(tmp_path / "drawn.npz", **images, y_train=np.arange(200) % 4, y_test=np.arange(40) % 4)
    return tmp_path / "drawn.npz"


def start(data, workdir, *more):
    arguments = ["ablation", "--data", f"arrays:{data}", "--scale", "cpu", "--smoke", "--main", "6", "--seeds", "1"]
    command = [sys.executable, "-m", "experiments.paper", *arguments, "--workdir", str(workdir), *more]
    # A session of its own, so that its run can be killed with it.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(data, workdir, *more):
    process = start(data, workdir, *more)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def outcome(workdir):
    rows = json.loads((workdir / "n6" / "results.json").read_text())["rows"]
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return rows, *((workdir / name).read_text() for name in ("tables.md", "tables.tex"))


@pytest.mark.timeout(3600)
def test_tables_of_a_command_that_is_killed_again_and_again_are_those_of_one_that_was_not(data, tmp_path):
    random.seed(0)
    finish(data, tmp_path / "whole")
    killed = 0
    for _ in range(KILLS):
        process = start(data, tmp_path / "killed")
        try:
            process.communicate(timeout=random.uniform(2.0, 12.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
    finish(data, tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert killed >= 2
    # What is done is not done again.
    assert ": done in " in finish(data, tmp_path / "killed")
