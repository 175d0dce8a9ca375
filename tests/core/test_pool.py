import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.pool import half_squared_error, init_member, over_leading_axis, put, take, train_member, train_or_reset
from ssdd_jax.nets import make_learner

pytestmark = pytest.mark.core

LEARNER = make_learner("convnet", (4,), (4, 4, 1), 3)
SGD = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.05, 0.9))
MAX_AGE = 3


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


IMAGES, REPRS = draw(12, 4, 4, 1), draw(12, 3, seed=1)


def update(key, member):
    return train_or_reset(key, member, IMAGES, REPRS, learner=LEARNER, optimizer=SGD, max_age=MAX_AGE)


update_one = jax.jit(update)
start = jax.jit(lambda key: init_member(key, LEARNER, SGD))
train = jax.jit(lambda member: train_member(member, IMAGES, REPRS, LEARNER, SGD))


@pytest.fixture
def pool(key):
    """Four members of ages 0, 1, 2 and 3, the last at its limit."""
    members = []
    for age, member_key in enumerate(jax.random.split(key, 4)):
        member = start(member_key)
        for _ in range(age):
            member, _ = train(member)
        members.append(member)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def member_of(pool, index):
    return jax.tree.map(lambda leaf: leaf[index], pool)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), left, right)


def moved(before, after):
    return [not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]


def test_training_lowers_the_loss_that_it_reports(key):
    member, losses = start(key), []
    for _ in range(20):
        member, loss = train(member)
        losses.append(float(loss))
    outputs, _ = LEARNER.apply_train(start(key).variables, IMAGES)
    assert losses[0] == pytest.approx(float(jnp.mean((outputs - REPRS) ** 2)), rel=1e-4)
    assert losses[-1] < 0.7 * losses[0]


def test_training_moves_every_parameter_the_batch_statistics_and_the_momentum(key):
    member = start(key)
    trained, _ = train(member)
    assert all(moved(member, trained))


def test_half_the_squared_error_is_a_sum_over_the_width_and_a_mean_over_rows():
    x, y = (np.asarray(array, np.float64) for array in (REPRS, REPRS[::-1]))
    np.testing.assert_allclose(half_squared_error(REPRS, REPRS[::-1]), sum(sum((x - y) ** 2).tolist()) / 2 / 12, rtol=1e-5)


def test_members_train_on_another_loss_where_one_is_given(key):
    settings = dict(learner=LEARNER, optimizer=SGD, max_age=MAX_AGE, loss=half_squared_error)
    found, value = jax.jit(lambda member: train_or_reset(key, member, IMAGES, REPRS, **settings))(start(key))
    expected, loss = jax.jit(lambda member: train_member(member, IMAGES, REPRS, LEARNER, SGD, half_squared_error))(start(key))
    assert_close(found, expected)
    # The mean over a width of 3, times 3 / 2.
    np.testing.assert_allclose([value, loss], 1.5 * float(train(start(key))[1]), rtol=1e-4)


def test_vmapped_members_equal_a_loop(pool, key):
    keys = jax.random.split(key, 4)
    together, losses = jax.jit(over_leading_axis(update))(keys, pool)
    for i in range(4):
        alone, loss = update_one(keys[i], member_of(pool, i))
        assert_close(member_of(together, i), alone)
        np.testing.assert_allclose(losses[i], loss, rtol=1e-4)


def test_ages_grow_by_one_or_start_over(pool, key):
    updated, _ = jax.jit(over_leading_axis(update))(jax.random.split(key, 4), pool)
    np.testing.assert_array_equal(pool.age, [0, 1, 2, 3])
    np.testing.assert_array_equal(updated.age, [1, 2, 3, 0])


def test_a_member_at_its_limit_is_replaced_by_a_fresh_one(pool, key):
    old = member_of(pool, 3)
    reset, _ = update_one(key, old)
    assert_close(reset, start(key))
    assert all(moved(old.variables["params"], reset.variables["params"]))
    assert any(moved(old.opt_state, reset.opt_state))
    assert all(not leaf.any() for leaf in jax.tree.leaves(reset.opt_state))
    for statistics in reset.variables["batch_stats"].values():
        np.testing.assert_array_equal(statistics["mean"], np.zeros(4))
        np.testing.assert_array_equal(statistics["var"], np.ones(4))


def test_a_replaced_member_trains_again_and_is_replaced_again(pool, key):
    member, ages, losses = member_of(pool, 3), [], []
    for step_key in jax.random.split(key, 2 * (MAX_AGE + 1)):
        before = member
        member, loss = update_one(step_key, member)
        ages.append(int(member.age))
        losses.append(float(loss))
        assert all(moved(before.variables, member.variables))
    assert ages == [0, 1, 2, 3, 0, 1, 2, 3]
    assert losses[3] < losses[1]


def test_only_the_members_that_are_put_back_change_and_the_others_keep_their_bits(pool, key):
    chosen = jnp.array([3, 1])
    updated, _ = jax.jit(over_leading_axis(update))(jax.random.split(key, 2), take(pool, chosen))
    after = put(pool, chosen, updated)
    for i in (0, 2):
        assert_equal(member_of(after, i), member_of(pool, i))
    for slot, i in enumerate((3, 1)):
        assert_equal(member_of(after, i), member_of(updated, slot))
        assert all(moved(member_of(pool, i), member_of(after, i)))


def test_members_come_in_the_order_of_the_index(pool):
    taken = take(pool, jnp.array([2, 0]))
    assert_equal(member_of(taken, 0), member_of(pool, 2))
    assert_equal(member_of(taken, 1), member_of(pool, 0))
    assert_equal(member_of(jax.jit(take)(pool, jnp.array([1])), 0), member_of(pool, 1))


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("in_axes", [0, (0, None), (None, 0)])
def test_over_leading_axis_equals_vmap(length, in_axes):
    fn = lambda x, y: {"product": x["a"] * y["a"] + x["b"], "constant": 2.0}
    lengths = (length, length) if in_axes == 0 else [length if axis == 0 else None for axis in in_axes]
    arguments = [{"a": draw(*([] if n is None else [n]), 4), "b": draw(*([] if n is None else [n]), 4, seed=1)} for n in lengths]
    assert_close(over_leading_axis(fn, in_axes)(*arguments), jax.vmap(fn, in_axes)(*arguments))


def test_an_axis_of_length_one_runs_the_function_unbatched():
    lowered = jax.jit(over_leading_axis(lambda x: x @ x.T)).lower(draw(1, 4, 4)).as_text()
    assert "batching_dims" not in lowered
    assert "batching_dims" in jax.jit(over_leading_axis(lambda x: x @ x.T)).lower(draw(2, 4, 4)).as_text()
