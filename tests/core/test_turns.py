import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.outer import init_outer, make_outer_step
from ssdd_jax.core.turns import in_turn, init_in_turn, key_of_pool
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.nets import make_learner

pytestmark = pytest.mark.core

SHAPE, WIDTH = (8, 8, 1), 5
KERNELS = [feature_kernel(make_learner("convnet", widths, SHAPE, WIDTH)) for widths in ((4,), (6, 4))]
OPTIMIZERS = {"optimizer": optax.adam(1e-2), "inner_optimizer": optax.sgd(0.05, 0.9)}
KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


DISTILLED = init_distilled(draw(4, *SHAPE), draw(1, 4, WIDTH), Layout(SHAPE, SHAPE, ("identity",), ("stored",)))
STEPS = [make_outer_step(kernel=kernel, **OPTIMIZERS, max_age=9) for kernel in KERNELS]


def batch(number):
    return draw(8, *SHAPE, seed=number), draw(8, WIDTH, seed=10 + number), jax.random.key(number)


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_architectures_take_turns_each_on_a_pool_of_its_own():
    state = init_in_turn(KEY, DISTILLED, kernels=KERNELS, **OPTIMIZERS, pool_size=2)
    by_hand = init_outer(KEY, DISTILLED, kernel=KERNELS[0], **OPTIMIZERS, pool_size=2)
    pools = [init_outer(key_of_pool(KEY, i), DISTILLED, kernel=kernel, **OPTIMIZERS, pool_size=2).pool for i, kernel in enumerate(KERNELS)]
    step, losses = jax.jit(in_turn(STEPS)), []
    for number in range(3):
        resting = state.pool[1 - number % 2]
        by_hand, wanted = jax.jit(STEPS[number % 2])(by_hand.replace(pool=pools[number % 2]), *batch(number))
        pools[number % 2] = by_hand.pool
        state, metrics = step(number, state, *batch(number))
        equal(metrics, wanted)
        jax.tree.map(np.testing.assert_array_equal, state.pool[1 - number % 2], resting)
        losses.append(float(metrics["loss"]))
    equal(state, by_hand.replace(pool=tuple(pools)))
    assert (int(state.step), [int(pool.age.sum()) for pool in state.pool]) == (3, [2, 1])
    assert len(set(losses)) == 3


def test_one_architecture_is_the_plain_step_bit_for_bit():
    settings = {**OPTIMIZERS, "pool_size": 2}
    state, plain = init_in_turn(KEY, DISTILLED, kernels=KERNELS[:1], **settings), init_outer(KEY, DISTILLED, kernel=KERNELS[0], **settings)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    after, _ = jax.jit(in_turn(STEPS[:1]))(0, state, *batch(0))
    wanted, _ = jax.jit(STEPS[0])(plain, *batch(0))
    jax.tree.map(np.testing.assert_array_equal, after, wanted)


def test_pools_of_one_architecture_are_different_ones():
    state = init_in_turn(KEY, DISTILLED, kernels=[KERNELS[0]] * 2, **OPTIMIZERS, pool_size=1)
    kernels = [jax.tree.leaves(pool.variables["params"])[-1] for pool in state.pool]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_seeds_that_are_mapped_together_still_do_one_of_the_steps():
    """A condition that is mapped over becomes a choice between the results of all branches."""
    state = init_in_turn(KEY, DISTILLED, kernels=KERNELS, **OPTIMIZERS, pool_size=1)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    step = jax.vmap(in_turn(STEPS), (None, 0, None, None, None))
    assert "cond[" in str(jax.make_jaxpr(step)(jnp.zeros((), jnp.int32), both, *batch(0)))
