import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.runtime.loop import Loop, seed_groups, stack, unstack
from ssdd_jax.runtime.memory import TooLarge


def walk(state, step, seed):
    """A random walk: its state depends on every step's key."""
    moved = state + jax.random.normal(step_key(seed, Stream.OUTER_STEP, step), state.shape)
    return moved, {"loss": jnp.sum(moved**2)}


def run(loop, num_steps, seeds=(3, 5), **kwargs):
    state = jnp.zeros((len(seeds), 4)) if "state" not in kwargs else kwargs.pop("state")
    return loop.run(state, num_steps, (jnp.asarray(seeds),), display=Display(), name="walk", **kwargs)


def test_seeds_side_by_side_equal_seeds_alone():
    both = run(Loop(walk, (0,)), 7)
    alone = [run(Loop(walk, (0,)), 7, (seed,))[0] for seed in (3, 5)]
    np.testing.assert_array_equal(both, jnp.stack(alone))


def test_steps_in_one_dispatch_equal_steps_one_by_one():
    np.testing.assert_array_equal(run(Loop(walk, (0,), 5), 13, log_every=4), run(Loop(walk, (0,), 1), 13))


def test_what_is_compiled_ahead_is_what_runs():
    loop, whole = Loop(walk, (0,), 1), run(Loop(walk, (0,), 1), 3)
    loop.compile_ahead(jax.ShapeDtypeStruct((2, 4), jnp.float32), jnp.asarray(0), 1, None, (), None, jnp.asarray((3, 5)))
    # Without it, nothing else could be compiled.
    loop.dispatch = None
    np.testing.assert_array_equal(run(loop, 3), whole)


def test_what_was_compiled_ahead_is_refused_where_it_is_too_large():
    loop = Loop(walk, (0,), 1, limit=1)
    loop.compile_ahead(jax.ShapeDtypeStruct((2, 4), jnp.float32), jnp.asarray(0), 1, None, (), None, jnp.asarray((3, 5)))
    with pytest.raises(TooLarge):
        run(loop, 3)


@pytest.mark.parametrize("asked", ["", "2"])
def test_lapack_has_one_thread_while_steps_run_and_what_it_had_afterwards(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", asked)
    threads = lambda: {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    jax.block_until_ready(jnp.linalg.cholesky(jnp.eye(2)))
    with threadpool_limits(2, user_api="blas"), Checkpoints(tmp_path, every=2) as checkpoints:
        found = []
        run(Loop(walk, (0,)), 2, checkpoints=checkpoints, on_save=lambda *_: found.append(threads()))
        assert found == [{2} if asked else {1}]
        assert threads() == {2}


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    whole = run(Loop(walk, (0,)), 10)
    with Checkpoints(tmp_path, every=4) as checkpoints:
        run(Loop(walk, (0,)), 6, checkpoints=checkpoints)
        assert checkpoints.latest == 6
        step, state = checkpoints.restore(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(run(Loop(walk, (0,)), 10, state=state, start=step), whole)


def test_a_number_that_goes_bad_is_named_with_its_step_and_the_last_checkpoint(tmp_path):
    def explode(state, step, _):
        return state, {"loss": jnp.where(step < 5, 1.0, jnp.nan)}

    metrics = Metrics(tmp_path / "metrics.jsonl")
    with (
        Checkpoints(tmp_path / "c", every=2) as checkpoints,
        pytest.raises(NumericalError, match=r"walk: loss is not finite at step 6; .*of step 4"),
    ):
        run(Loop(explode, (0,)), 10, metrics=metrics, log_every=2, checkpoints=checkpoints)
    assert [record["step"] for record in metrics.read()] == [2, 4]


def test_seed_groups_cover_every_seed_once_in_order():
    assert seed_groups((4, 2, 9), 2) == [(4, 2), (9,)]
    assert seed_groups((4, 2, 9), 0) == [(4,), (2,), (9,)]


def test_unstack_undoes_stack():
    trees = [{"a": jnp.arange(3.0) + i, "b": None} for i in range(2)]
    for tree, back in zip(trees, unstack(stack(trees)), strict=True):
        np.testing.assert_array_equal(tree["a"], back["a"])
