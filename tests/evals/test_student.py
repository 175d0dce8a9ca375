import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.pool import init_member, train_member
from ssdd_jax.evals.batches import batch_schedule
from ssdd_jax.evals.student import make_student_step, repr_error
from ssdd_jax.nets import make_learner

pytestmark = pytest.mark.core


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def test_repr_error_is_zero_for_perfect_and_one_for_the_mean():
    reprs = draw(20, 5) * jnp.arange(1, 6)[None] + 10
    assert float(repr_error(reprs, reprs)) == 0.0
    mean = jnp.broadcast_to(reprs.mean(0, keepdims=True), reprs.shape)
    np.testing.assert_allclose(repr_error(mean, reprs), 1.0, rtol=1e-5)
    np.testing.assert_allclose(repr_error((mean + reprs) / 2, reprs), 0.25, rtol=1e-4)


def test_repr_error_does_not_depend_on_scale_or_offset():
    predicted, reprs = draw(20, 5), draw(20, 5, seed=1)
    np.testing.assert_allclose(repr_error(3 * predicted + 2, 3 * reprs + 2), repr_error(predicted, reprs), rtol=1e-4)


def test_a_student_step_trains_on_the_rows_of_its_batch_and_learns(key):
    learner, optimizer = make_learner("convnet", (4,), (4, 4, 1), 3), optax.sgd(0.05, 0.9)
    images, reprs = draw(10, 4, 4, 1), draw(10, 3, seed=1)
    member = jax.jit(lambda k: init_member(k, learner, optimizer))(key)
    step, schedule = jax.jit(make_student_step(learner=learner, optimizer=optimizer)), batch_schedule(key, 10, 4, 30)
    rows = schedule[2]
    expected, _ = jax.jit(lambda m, x, y: train_member(m, x, y, learner, optimizer))(member, images[rows], reprs[rows])
    once, _ = step(member, 2, schedule, images, reprs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), once, expected)
    losses = []
    for i in range(30):
        member, metrics = step(member, i, schedule, images, reprs)
        losses.append(float(metrics["loss"]))
    assert int(member.age) == 30
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
