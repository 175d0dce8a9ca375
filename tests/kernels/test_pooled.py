from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels as oracle
from oracles.krr import finite_difference

from ssdd_jax.kernels.infinite import fc_kernel
from ssdd_jax.kernels.pooled import pooled_kernel
from ssdd_jax.registry import KERNELS

pytestmark = pytest.mark.core

KINDS = ("nngp", "ntk")


def images(count, shape=(4, 5, 2), seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=(count, *shape)))


@pytest.mark.parametrize("depth", [1, 2])
def test_values_equal_the_recursion_of_every_pair(depth, float64):
    x, y = images(2), images(3, seed=1)
    for i, kind in enumerate(KINDS):
        expected = [[oracle.convnet(np.asarray(a), np.asarray(b), depth)[i] for b in y] for a in x]
        np.testing.assert_allclose(pooled_kernel(x, y, depth=depth, kind=kind), expected, rtol=1e-9)


def test_it_is_a_kernel(float64):
    x, y = images(4), images(3, seed=1)
    kernel = partial(pooled_kernel, depth=1)
    k = np.asarray(kernel(x, x))
    np.testing.assert_allclose(k, k.T, rtol=1e-10)
    assert np.linalg.eigvalsh(k).min() > 0
    crossed = kernel(x, y)
    np.testing.assert_allclose(crossed, np.asarray(kernel(y, x)).T, rtol=1e-10)
    np.testing.assert_allclose(kernel(x, y, max_numbers=3 * 20**2), crossed, rtol=1e-12)
    # Without blocks it is a linear model.
    np.testing.assert_allclose(pooled_kernel(x, y, depth=0), fc_kernel(x, y, depth=0), rtol=1e-10)


def test_its_gradient_is_finite_and_right_where_images_are_equal(float64):
    x = images(2, (2, 2, 1))
    total = jax.jit(lambda x: jnp.sum(pooled_kernel(x, images(2, (2, 2, 1), 1), depth=1) * jnp.arange(4.0).reshape(2, 2)))
    np.testing.assert_allclose(jax.grad(total)(x), finite_difference(total, np.asarray(x)), rtol=1e-5, atol=1e-8)
    twice = jnp.concatenate([x, x[:1]])
    gradient = jax.grad(lambda x: jnp.sum(pooled_kernel(x, x, depth=1) ** 2))(twice)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 3}, "depth is 3, which pools 4 x 5 pixels to nothing; lower it"),
        ({"max_numbers": 799}, r"2 images of 4 x 5 pixels take 0\.0 GB for a single row, .* expected at most 1 images, smaller ones"),
        ({"kind": "both"}, "kind is 'both'"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pooled_kernel(images(3), images(2, seed=1), **{"depth": 1, **settings})


def test_the_outer_loss_predicts_with_it():
    kernel = KERNELS["convnet_ntk"](None, depth=2, ridge=1e-4)
    x, targets = (part.astype(jnp.float32) for part in (images(3), images(3, (2,), 2)))
    predicted, increases = jax.jit(partial(kernel.predict, None))(x, targets, x)
    assert (kernel.learner, int(increases)) == (None, 0)
    np.testing.assert_allclose(predicted, targets, atol=1e-2)
