import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles.krr import finite_difference

from ssdd_jax.core.losses import label_loss, logit_loss
from ssdd_jax.core.trajectories import gsam_direction, start_limit, trajectory_loss

SHAPES = {"w1": (4, 3), "b1": (4,), "w2": (3, 4), "b2": (3,)}
_, UNRAVEL = ravel_pytree({name: jnp.zeros(shape) for name, shape in SHAPES.items()})


def apply(params, images):
    """A network of one hidden layer of four tanh units, of parameters as one vector."""
    layers = UNRAVEL(params)
    hidden = jnp.tanh(images.reshape(len(images), -1) @ layers["w1"].T + layers["b1"][None])
    return hidden @ layers["w2"].T + layers["b2"][None]


def shift(key, images):
    return images + 0.1 * jax.random.normal(key, images.shape, images.dtype)


def case():
    """Return images, logits, a rate, an expert's two ends, the rows of three steps on two images each, and their keys."""
    rows = jnp.array([[0, 1], [2, 0], [1, 2]])
    images, labels = jnp.cos(0.3 * jnp.arange(9.0)).reshape(3, 1, 3, 1), 2 * jnp.sin(jnp.arange(9.0)).reshape(3, 3)
    start = jnp.sin(jnp.arange(31.0))
    return images, labels, jnp.asarray(0.3), start, start + 0.1 * jnp.cos(jnp.arange(31.0)), rows, jax.random.split(jax.random.key(3), 3)


def loss_of(*args, loss=logit_loss, augment=shift):
    return trajectory_loss(*args, apply=apply, loss=loss, augment=augment)


def by_hand(images, labels, rate, start, target, rows, keys):
    """The same loss, one step after the other."""
    params = start
    for step in range(len(rows)):
        batch = shift(keys[step], images[rows[step]])
        params = params - rate * jax.grad(lambda p, x=batch, y=labels[rows[step]]: logit_loss(apply(p, x), y))(params)
    return jnp.sum((params - target) ** 2) / jnp.sum((start - target) ** 2)


@pytest.mark.core
def test_loss_and_gradients_are_those_of_a_loop_that_is_written_out(float64):
    args, moved = case(), (0, 1, 2)
    found = jax.jit(jax.value_and_grad(loss_of, moved))(*args)
    expected = jax.jit(jax.value_and_grad(by_hand, moved))(*args)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-10), found, expected)


@pytest.mark.core
def test_the_gradient_with_respect_to_the_rate_is_that_of_finite_differences(float64):
    images, labels, rate, *rest = case()
    of = jax.jit(lambda rate: loss_of(images, labels, rate, *rest))
    np.testing.assert_allclose(jax.grad(of)(rate), finite_difference(of, np.asarray(rate)), rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("loss", [label_loss, logit_loss])
def test_a_set_that_moves_nothing_has_a_loss_of_exactly_one(loss):
    images, labels, _, *rest = case()
    assert float(jax.jit(lambda *args: loss_of(*args, loss=loss))(images, labels, jnp.asarray(0.0), *rest)) == 1.0


def test_a_set_whose_gradients_are_the_experts_ends_where_it_ended():
    images, labels, rate, start, _, rows, keys = case()
    params = start
    for step in range(len(rows)):
        params = params - rate * jax.grad(lambda p, i=rows[step]: logit_loss(apply(p, images[i]), labels[i]))(params)
    assert float(loss_of(images, labels, rate, start, params, rows, keys, augment=lambda key, images: images)) < 1e-10


@pytest.mark.core
def test_a_start_lies_before_a_limit_that_grows_to_its_last_value():
    limits = [int(start_limit(jnp.asarray(number), 10, 20, 1000)) for number in (0, 99, 100, 500, 999, 1000, 5000)]
    assert limits == [10, 10, 11, 15, 19, 20, 20]
    assert start_limit(jnp.asarray(3), 10, 20, 0) == 20


@pytest.mark.core
def test_soft_labels_that_are_nearly_hard_have_the_loss_of_hard_ones(float64):
    outputs, one_hot = jnp.sin(jnp.arange(12.0)).reshape(4, 3), jnp.eye(3)[jnp.array([2, 0, 1, 1])]
    np.testing.assert_allclose(logit_loss(outputs, 20 * one_hot), label_loss(outputs, one_hot), atol=1e-6)
    np.testing.assert_allclose(logit_loss(outputs, 20 * one_hot + 5), logit_loss(outputs, 20 * one_hot), rtol=1e-12)


@pytest.mark.core
def test_gsam_has_its_known_values(float64):
    params, here, seen = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, -0.2]), []

    def gradient(params):
        seen.append(params)
        return here + jnp.array([0.05, -0.02, 0.01])

    found = gsam_direction(gradient, params, here, rho=0.01, alpha=0.3)
    np.testing.assert_allclose(seen[0] - params, [0.0080178373, 0.0106904497, -0.0013363062], rtol=1e-7)
    np.testing.assert_allclose(found, [0.3560909091, 0.0719636364, -0.1821636364], rtol=1e-9)


@pytest.mark.core
@pytest.mark.parametrize("alpha", [0.0, 0.3, 7.0])
def test_gsam_that_climbs_nowhere_is_gradient_descent(alpha, float64):
    params, gradient = jnp.array([1.0, -2.0, 0.5]), lambda params: params**3
    here = gradient(params)
    np.testing.assert_allclose(gsam_direction(gradient, params, here, rho=0.0, alpha=alpha), here, rtol=1e-9)
