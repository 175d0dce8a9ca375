from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.approximation import Networks
from ssdd_jax.core.distilled import DistilledSet, Layout, expand, num_stored_scalars
from ssdd_jax.core.quantise import quantise, stored_numbers, to_floats, to_integers
from ssdd_jax.core.stores.factored import Factors
from ssdd_jax.core.stores.plain import Plain

pytestmark = pytest.mark.core

VIEWS = ("identity", "rot90", "hflip")


def normal(*shape):
    return jnp.asarray(np.random.RandomState(sum(shape)).normal(size=shape), jnp.float32)


def plain():
    return DistilledSet(Plain(normal(5, 4, 4, 2)), Plain(normal(1, 5, 6)), None, Layout((4, 4, 2), (4, 4, 2)))


def factored():
    networks = Networks(w1=normal(1, 3, 2), b1=normal(1, 2), w2=normal(1, 2, 3), b2=normal(1, 3))
    layout = Layout((4, 4, 2), (4, 4, 2), VIEWS, ("stored", "network", "shared"))
    images, reprs = Factors(normal(32), normal(4, 32), normal(5, 4)), Factors(normal(6), normal(3, 6), normal(1, 5, 3))
    return DistilledSet(images, reprs, networks, layout)


def by_hand(row, bits):
    """Round one row to multiples of its largest number over 127, or 7."""
    step = np.float32(np.abs(row).max()) / np.float32(2 ** (bits - 1) - 1)
    return np.rint(row / step).astype(np.float32) * step


@pytest.mark.parametrize("bits", [8, 4])
def test_every_row_has_a_step_of_its_own(bits):
    distilled = factored()
    rounded = quantise(distilled, bits)
    for rows, new in [
        (distilled.images.mean[None], rounded.images.mean[None]),
        (distilled.images.bases, rounded.images.bases),
        (distilled.images.coefficients, rounded.images.coefficients),
        (distilled.reprs.coefficients[0], rounded.reprs.coefficients[0]),
        (distilled.networks.w1.reshape(1, -1), rounded.networks.w1.reshape(1, -1)),
    ]:
        np.testing.assert_allclose(new, np.stack([by_hand(np.asarray(row), bits) for row in rows]), rtol=1e-6)
    images = plain().images.rows
    expected = np.stack([by_hand(np.asarray(image), bits) for image in images])
    np.testing.assert_allclose(quantise(plain(), bits).images.rows, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [plain, factored])
def test_32_bits_change_nothing_and_rounding_twice_changes_little(make):
    distilled = make()
    assert quantise(distilled, 32) is distilled
    once = quantise(distilled, 8)
    for new, old in zip(jax.tree.leaves(quantise(once, 8)), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6)


def test_rows_of_zeros_stay_zeros():
    integers, step = to_integers(jnp.zeros((2, 3)), 4, 1)
    np.testing.assert_array_equal(to_floats(integers, step), 0)
    np.testing.assert_array_equal(step, 1)


def test_gradients_pass_straight_through():
    distilled = factored()
    loss = lambda distilled: sum(jnp.sum(part**2) for part in expand(distilled))
    rounded = quantise(distilled, 4)
    found = jax.grad(lambda distilled: loss(quantise(distilled, 4)))(distilled)
    for new, expected in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(loss)(rounded)), strict=True):
        np.testing.assert_allclose(new, expected, rtol=1e-6)


def test_stored_numbers_are_counted_in_32_bits():
    assert stored_numbers(plain()) == num_stored_scalars(plain()) == 5 * 32 + 5 * 6
    # Five images and five representations have a step each.
    assert stored_numbers(plain(), 8) == -(-(8 * 190 + 32 * 10) // 32)
    # Two means, 4 + 3 bases, 5 + 5 rows of coefficients and four arrays of the network.
    assert stored_numbers(factored(), 4) == -(-(4 * num_stored_scalars(factored()) + 32 * (2 + 7 + 10 + 4)) // 32)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits is 7, expected one of 32, 8, 4"):
        quantise(plain(), 7)


def test_a_part_of_the_images_is_rounded_as_they_are_in_the_whole():
    distilled = plain()
    some = replace(distilled, images=distilled.images.take(jnp.array([3, 1]), 0), reprs=distilled.reprs.take(jnp.array([3, 1]), 1))
    np.testing.assert_array_equal(quantise(some, 8).images.rows, quantise(distilled, 8).images.rows[jnp.array([3, 1])])
