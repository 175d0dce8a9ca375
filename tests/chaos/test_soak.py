"""Two thousand steps leave no more behind than two hundred."""

import contextlib
import gc
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax import Layout, factored, feature_kernel, fit_pca, init_distilled, init_outer, make_learner, make_outer_step
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.loop import Loop, stack

STEPS = 2000


def resident_bytes():
    """Return the memory of this process, as Linux counts it."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Soak(Display):
    """Looks at this process as the steps go by."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.memory, self.files = folder, {}, {}

    @contextlib.contextmanager
    def task(self, name, total):
        with super().task(name, total) as task:
            advance = task.advance

            def watched(done, note=""):
                advance(done, note)
                if done % 200 == 0:
                    gc.collect()
                    self.memory[done] = resident_bytes()
                    self.files[done] = sum(1 for file in self.folder.rglob("*") if file.is_file())

            task.advance = watched
            yield task


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read where Linux tells it")
def test_two_thousand_steps_compile_nothing_again_and_keep_memory_and_files_bounded(tmp_path, key, caplog):
    images, reprs = jax.random.normal(key, (200, 8, 8, 1)), jax.random.normal(key, (200, 6))
    layout = Layout(image_shape=(8, 8, 1), base_shape=(4, 4, 1))
    pca = fit_pca(jax.random.normal(key, (100, 16)), 4)
    start = init_distilled(images[:5], reprs[None, :5], layout, image_store=factored(pca), repr_store=factored(fit_pca(reprs, 3)))
    kernel = feature_kernel(make_learner("convnet", (4, 8), (8, 8, 1), 6))
    settings = dict(kernel=kernel, optimizer=optax.adam(1e-3), inner_optimizer=optax.sgd(0.01, 0.9))
    outer_step = make_outer_step(max_age=20, **settings)
    draw = lambda step, seed: (jax.random.randint(step_key(seed, Stream.OUTER_STEP, step), (16,), 0, 200),) * 2
    step = lambda state, number, batch, seed: outer_step(state, *batch, step_key(seed, Stream.OUTER_STEP, number))
    loop = Loop(step, (0,), 1, draw)
    state = stack([init_outer(key, start, pool_size=3, **settings)])
    display, compiled = Soak(tmp_path), []
    jax.config.update("jax_log_compiles", True)
    caplog.set_level(logging.WARNING, "jax")
    try:
        with Checkpoints(tmp_path / "checkpoints", every=20) as checkpoints:
            loop.run(
                state,
                STEPS,
                (jnp.asarray([0]),),
                display=display,
                name="soak",
                tables=(images, reprs),
                metrics=Metrics(tmp_path / "metrics.jsonl"),
                log_every=10,
                checkpoints=checkpoints,
            )
    finally:
        jax.config.update("jax_log_compiles", False)
        compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert len(loop.compiled) == 1
    assert len([line for line in compiled if "dispatch" in line]) == 1, compiled
    assert sorted(display.memory) == list(range(200, STEPS + 1, 200))
    print(f"memory in MB: { {step: round(size / 1e6) for step, size in display.memory.items()} }, files: {display.files}")
    # From the first look on, at which everything has been compiled, saved and logged.
    growth = max(display.memory.values()) - display.memory[200]
    assert growth < 50e6, {step: f"{size / 1e6:.0f} MB" for step, size in display.memory.items()}
    assert max(display.files.values()) <= display.files[200] + 20
    losses = [record["loss"] for record in Metrics(tmp_path / "metrics.jsonl").read()]
    assert np.isfinite(losses).all()
    assert len(losses) == STEPS // 10
