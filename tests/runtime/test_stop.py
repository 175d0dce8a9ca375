"""A run that is asked to stop loses nothing."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK_TEACHER

from ssdd_jax.errors import StorageError
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import stop
from ssdd_jax.runtime.loop import Loop, resumable


class SignalAt(Display):
    """Sends this process a signal once a step is done."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__()
        self.step, self.number = step, number

    @contextlib.contextmanager
    def task(self, name, total):
        with super().task(name, total) as task:
            advance = task.advance
            task.advance = lambda done, note="": (advance(done, note), done == self.step and os.kill(os.getpid(), self.number))
            yield task


def walk(state, step, seed):
    moved = state + jax.random.normal(step_key(seed, Stream.OUTER_STEP, step), state.shape)
    return moved, {"loss": jnp.sum(moved**2)}


def run(folder, display):
    checkpoints, start, state = resumable(folder / "checkpoints", jnp.zeros((2, 4)), display, every=9)
    folder.mkdir(exist_ok=True)
    metrics = Metrics(folder / "metrics.jsonl")
    with checkpoints:
        settings = dict(display=display, name="walk", start=start, metrics=metrics, log_every=5, checkpoints=checkpoints)
        state = Loop(walk, (0,)).run(state, 20, (jnp.asarray([3, 5]),), **settings)
    return np.asarray(state), (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 7, 9, 14])
def test_a_loop_stops_after_a_step_with_a_checkpoint_and_goes_on_bit_for_bit(tmp_path, step, number):
    state, metrics = run(tmp_path / "whole", Display())
    with stop.on_signals(), pytest.raises(stop.Stopped, match=f"stopped at step {step + 1} of walk; run the same command to go on"):
        run(tmp_path / "stopped", SignalAt(step, number))
    with Checkpoints(tmp_path / "stopped" / "checkpoints") as checkpoints:
        assert checkpoints.latest == step + 1
    resumed_state, resumed_metrics = run(tmp_path / "stopped", Display())
    np.testing.assert_array_equal(resumed_state, state)
    # The line after the stop averages over the steps before it too.
    assert resumed_metrics == metrics


def test_a_stop_whose_checkpoint_cannot_be_written_does_not_end_as_if_it_had_been(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with stop.on_signals(), pytest.raises(StorageError, match="no space left"):
        run(tmp_path / "stopped", SignalAt(4))


def test_lines_of_a_phase_survive_that_the_one_before_is_found_complete(tmp_path):
    def phases(folder, display):
        folder.mkdir(exist_ok=True)
        state, metrics = jnp.zeros((1, 4)), Metrics(folder / "metrics.jsonl")
        for number, (first, last) in enumerate([(0, 10), (10, 30)]):
            checkpoints, start, state = resumable(folder / str(number), state, display, every=6)
            settings = dict(display=display, name="walk", metrics=metrics, log_every=2, checkpoints=checkpoints, start=max(first, start))
            with checkpoints:
                state = Loop(walk, (0,)).run(state, last, (jnp.asarray([3]),), **settings)
        return (folder / "metrics.jsonl").read_bytes()

    with stop.on_signals(), pytest.raises(stop.Stopped, match="step 21"):
        phases(tmp_path / "stopped", SignalAt(20))
    assert phases(tmp_path / "stopped", Display()) == phases(tmp_path / "whole", Display())


def test_outside_a_loop_a_signal_stops_at_once_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals(), pytest.raises(stop.Stopped):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stop.requested()


@pytest.mark.parametrize("explicit", [True, False])
def test_a_stop_of_which_a_library_makes_an_error_of_its_own_is_a_stop(explicit):
    def library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            if explicit:
                raise KeyError("incompatible handler") from error
            raise RuntimeError("failed")  # noqa: B904

    with pytest.raises(stop.Stopped, match="run the same command to go on"), stop.on_signals():
        library()


def test_an_error_that_a_stop_led_to_is_still_said():
    def cannot_save():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except stop.Stopped:
            raise StorageError("no room") from None

    with pytest.raises(StorageError, match="no room"), stop.on_signals():
        cannot_save()


def test_a_signal_that_comes_while_an_object_is_finalized_is_not_lost(capfd):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work():
        thing = Finalized()
        del thing
        time.sleep(30)

    started = time.monotonic()
    with stop.on_signals(), pytest.raises(stop.Stopped):
        work()
    assert time.monotonic() - started < 20
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_signal_ends_the_process_at_once():
    code = """if True:
        import os, signal
        from ssdd_jax.runtime import stop
        with stop.on_signals(), stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            print(stop.requested(), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("not reached")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (stop.STATUS, "True\n")


@pytest.mark.chaos
def test_a_run_that_is_terminated_says_so_and_ends_with_the_same_bytes(tmp_path):
    args = [sys.executable, "-m", "ssdd_jax.main", "--config", "digits:smoke", "--task=distill", "--config.only=krr_st"]
    args += ["--config.methods.krr_st.steps=400", "--config.teacher.steps=20"]
    # Small, since compiling takes most of the time.
    args += ["--config.teacher.widths=(8,)", "--config.student.widths=(4,)", "--config.pool.size=1", *QUICK_TEACHER]

    def distil(name, terminate=False):
        process = subprocess.Popen([*args, "--workdir", str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if terminate:
            folder = tmp_path / name / "metrics.jsonl"
            while process.poll() is None and not (folder.exists() and "distill/krr_st" in folder.read_text()):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
        return process.communicate()[1], process.returncode

    error, status = distil("stopped", terminate=True)
    assert status == 75, error
    assert "stopped at step" in error
    assert "Traceback" not in error
    assert distil("stopped")[1] == 0
    assert distil("whole")[1] == 0
    for file in ("distilled/krr_st/seed_0/distilled.safetensors", "metrics.jsonl"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
