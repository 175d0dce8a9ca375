from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax import init_distilled, init_outer, make_learner, make_outer_step
from ssdd_jax.core.distilled import Layout
from ssdd_jax.kernels.empirical import empirical_ntk, tangent_matrix

pytestmark = pytest.mark.core

SHAPE = (4, 4, 1)
LEARNER = make_learner("convnet", (3,), SHAPE, 2, precision="float32")


def images(count, seed):
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


def test_the_matrix_is_the_mean_over_outputs_of_products_of_jacobians():
    variables, x, y = jax.jit(LEARNER.init)(jax.random.key(0)), images(3, 1), images(2, 2)
    jacobians = jax.jit(jax.jacrev(lambda params, rows: LEARNER.apply({**variables, "params": params}, rows)))
    jacobian = lambda rows: [leaf.reshape(len(rows), 2, -1) for leaf in jax.tree.leaves(jacobians(variables["params"], rows))]
    expected = sum(np.einsum("akp,bkp->ab", a, b) for a, b in zip(jacobian(x), jacobian(y), strict=True)) / 2
    for chunk_size in (0, 2):
        found = jax.jit(lambda v, x, y, size=chunk_size: tangent_matrix(LEARNER, v, x, y, chunk_size=size))(variables, x, y)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_step_moves_a_set_and_trains_its_members():
    x = images(12, 3)
    distilled = init_distilled(x[:4], jnp.eye(4)[None, :, :2], Layout(SHAPE, SHAPE))
    settings = dict(kernel=empirical_ntk(LEARNER, ridge=1e-3), optimizer=optax.adam(1e-2), inner_optimizer=optax.sgd(0.1))
    state = jax.jit(lambda key: init_outer(key, distilled, pool_size=2, **settings))(jax.random.key(0))
    step = jax.jit(partial(make_outer_step(max_age=5, **settings), images=x, reprs=jnp.sin(x[:, 0, :2, 0]), key=jax.random.key(1)))
    losses = []
    for _ in range(28):
        state, metrics = step(state)
        losses.append(float(metrics["loss"]))
    assert all(np.isfinite(losses))
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.pool.age.sum()) > 0
