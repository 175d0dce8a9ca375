"""Two real processes on the loopback interface: they end alike, stop together, go on elsewhere, and do not outlive one another."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ssdd_jax.cli import parse
from ssdd_jax.main import main
from ssdd_jax.runtime import hosts

REPOSITORY = Path(__file__).parents[2]
# Without a pretrained teacher, and small: compiling takes most of the time.
ARGS = ["--config", "digits:smoke", "--task=distill", "--config.only=krr_st", "--config.teacher.steps=0", "--config.pool.max_age=2"]
ARGS += [
    "--config.teacher.widths=(8,)",
    "--config.student.widths=(4,)",
    "--config.pool.size=1",
    "--config.methods.krr_st.learning_rate=1e-3",
]
ARGS += ["--config.devices.heartbeat_s=10", "--config.checkpoints.every=100", "--config.log_every=20"]
LOST = re.compile(r"^error: another process of this run was lost at step \d+ of \S+; start all processes again", re.MULTILINE)


class Run:
    """The processes of a run, with what they say in files: gloo chats on standard output."""

    def __init__(self, workdir, steps, processes=2, devices=1, other=(), others_workdir=None):
        self.workdir, self.files, self.processes = workdir, [], []
        workdir.parent.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        for number in range(processes):
            folder = others_workdir if number and others_workdir else workdir
            command = [sys.executable, "-m", "ssdd_jax.main", *ARGS, "--workdir", str(folder), f"--config.methods.krr_st.steps={steps}"]
            command += [f"--distributed=127.0.0.1:{port},{processes},{number}"] if processes > 1 else []
            command += other if number else ()
            self.files.append(workdir.parent / f"{workdir.name}-{time.monotonic_ns()}-{number}.txt")
            with self.files[-1].open("w") as said, self.files[-1].with_suffix(".out").open("w") as out:
                self.processes.append(subprocess.Popen(command, stdout=out, stderr=said, env=environment, cwd=workdir.parent))

    def wait(self):
        """Return every process's exit status and what it said on standard error."""
        statuses = [process.wait(timeout=300) for process in self.processes]
        return statuses, [file.read_text() for file in self.files]

    def until(self, stage, step):
        """Wait until a step is logged."""
        while not any(record["stage"].startswith(stage) and record["step"] >= step for record in lines(self.workdir)):
            assert all(process.poll() is None for process in self.processes), self.wait()
            time.sleep(0.02)


def lines(workdir):
    file = workdir / "metrics.jsonl"
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.exists() else []
    return [json.loads(line) for line in whole]


def losses(workdir):
    """Return the steps of the distillation's lines and their losses."""
    records = [record for record in lines(workdir) if record["stage"].startswith("distill")]
    return [record["step"] for record in records], np.array([record["loss"] for record in records])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run of one process."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert Run(workdir, 200, processes=1).wait() == ([0], [""])
    return workdir


def assert_alike(workdir, whole):
    steps, found = losses(workdir)
    expected_steps, expected = losses(whole)
    # Every line once: one process writes.
    assert steps == expected_steps == list(range(20, 201, 20))
    # Sums in another order, and Adam's first steps are as large whatever the gradient.
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert (workdir / "distilled/krr_st/seed_0/manifest.json").is_file()


def test_two_processes_make_what_one_makes(whole, tmp_path):
    statuses, said = Run(tmp_path / "run", 200).wait()
    assert (statuses, said) == ([0, 0], ["", ""])
    assert_alike(tmp_path / "run", whole)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "SHA256SUMS",
        "checkpoints",
        "distilled",
        "metrics.jsonl",
        "spec.json",
        "teacher",
    ]


def test_a_signal_to_one_stops_both_at_the_same_step_and_the_run_goes_on_elsewhere(whole, tmp_path):
    run = Run(tmp_path / "run", 200)
    run.until("distill", 20)
    run.processes[1].send_signal(signal.SIGTERM)
    statuses, said = run.wait()
    assert statuses == [75, 75], said
    stopped = [re.findall(r"stopped at step (\d+) of distill/krr_st/seeds_0; run the same command to go on", text) for text in said]
    assert stopped[0][:1] == stopped[1][:1] != []
    step = int(stopped[0][0])
    assert list((tmp_path / "run").glob(f"checkpoints/krr_st-*/free/{step}.sha256.json"))
    assert not any("Traceback" in text for text in said)
    # Two devices in one process, and then one.
    run = Run(tmp_path / "run", 200, processes=1, devices=2)
    run.until("distill", 20 * (step // 20 + 1))
    run.processes[0].send_signal(signal.SIGTERM)
    run.wait()
    statuses, said = Run(tmp_path / "run", 200, processes=1).wait()
    assert statuses == [0], said
    assert_alike(tmp_path / "run", whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_message(victim, tmp_path):
    run = Run(tmp_path / "run", 100_000)
    run.until("distill", 20)
    run.processes[victim].kill()
    started = time.monotonic()
    statuses, said = run.wait()
    assert time.monotonic() - started < 45
    assert statuses[1 - victim] == hosts.STATUS == 6, said
    assert LOST.search(said[1 - victim]), said
    assert "Traceback" not in said[1 - victim]


def test_processes_of_other_settings_are_refused_and_all_end(tmp_path):
    statuses, said = Run(tmp_path / "run", 200, other=["--config.seeds=(1,)"]).wait()
    assert statuses == [2, 2], said
    assert all("process 1 differs from process 0 in its settings" in text for text in said)


def test_a_workdir_that_is_not_shared_is_refused_and_all_end(tmp_path):
    statuses, said = Run(tmp_path / "run", 200, others_workdir=tmp_path / "another").wait()
    assert statuses == [2, 2], said
    assert all("give a folder that all processes share" in text for text in said)


@pytest.mark.parametrize("value", ["", "here", "127.0.0.1,2,0", "127.0.0.1:7000,2,2", "127.0.0.1:7000,2", "127.0.0.1:99999,2,0"])
def test_a_bad_address_is_one_line(value, tmp_path, capsys):
    assert main([*ARGS, "--workdir", str(tmp_path), f"--distributed={value}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --distributed is {value!r}, expected auto, or HOST:PORT,NUM,ID")
    assert error.count("\n") == 1


def test_what_is_given_for_distributed():
    assert parse([*ARGS, "--workdir", "x"]).distributed is None
    assert parse([*ARGS, "--workdir", "x", "--distributed=auto"]).distributed == "auto"
    assert parse([*ARGS, "--workdir", "x", "--distributed=a.b:7000,3,2"]).distributed == ("a.b:7000", 3, 2)
