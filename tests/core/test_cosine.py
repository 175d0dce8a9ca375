"""Images whose bases are kept as their lowest frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn

from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.stores.cosine import cosine, cosines, lowest_frequencies
from ssdd_jax.core.stores.factored import factored

pytestmark = pytest.mark.core

SHAPE = (6, 8, 3)
NUMBERS = 6 * 8 * 3


def images(count=40, seed=0):
    """Smooth images, as real ones are."""
    draw = np.random.RandomState(seed).normal(size=(count, *SHAPE)).cumsum(1).cumsum(2)
    return jnp.asarray(draw / 10, jnp.float32)


def start(rows, bases, frequencies, scale="each"):
    return cosine(fit_pca(rows.reshape(len(rows), -1), bases), frequencies, scale)(rows)


@pytest.mark.parametrize("shape", [(6, 8, 3), (5, 5, 1), (4, 1, 2)])
def test_all_cosines_are_the_discrete_cosine_transform(shape):
    draw = np.random.RandomState(1).normal(size=shape)
    count = int(np.prod(shape))
    places = tuple(np.transpose(lowest_frequencies(shape, count)))
    np.testing.assert_allclose(cosines(shape, count) @ draw.ravel(), dctn(draw, norm="ortho")[places], atol=1e-5)


def test_low_frequencies_come_first_and_brightness_before_colour():
    first = lowest_frequencies((32, 32, 3), 256)
    assert first[0] == (0, 0, 0)
    assert first.index((3, 3, 0)) < first.index((5, 5, 0)) < first.index((5, 5, 1))
    assert all(first.index((i, j, k)) < first.index((i + 1, j, k)) for i, j, k in first if (i + 1, j, k) in first)
    # In an oblong image what counts is the length of a period in pixels.
    assert lowest_frequencies((8, 4, 1), 4) == ((0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 0, 0))


@pytest.mark.parametrize("scale", ["each", "balanced", 2.0])
def test_with_all_frequencies_they_are_the_images_that_pixel_bases_give(scale):
    rows = images()
    ours, pixels = start(rows, 7, NUMBERS, scale), factored(fit_pca(rows.reshape(len(rows), -1), 7), scale)(rows)
    np.testing.assert_allclose(ours.decode(ours.codes), pixels.decode(pixels.codes), atol=1e-4)
    np.testing.assert_allclose(ours.bases, pixels.bases, atol=1e-4)


def test_without_the_high_frequencies_coefficients_are_the_nearest():
    rows = images()
    store = start(rows, 7, 20)
    target = rows.reshape(len(rows), -1) @ cosines(SHAPE, 20).T - store.mean.T
    nearest = np.linalg.lstsq(np.asarray(store.spectra).T, np.asarray(target).T, rcond=None)[0].T
    np.testing.assert_allclose(store.coefficients, nearest, atol=1e-3)


def test_bases_that_hardly_differ_in_what_is_kept_make_no_large_coefficients():
    # What varies most is a checkerboard, which has no low frequencies.
    board = jnp.asarray(np.indices(SHAPE).sum(0) % 2 - 0.5, jnp.float32)
    rows = images() * 1e-3 + board[None] * jnp.asarray(np.random.RandomState(3).normal(size=(40, 1, 1, SHAPE[2])), jnp.float32)
    store = start(rows, 5, 6, 1.0)
    flat = rows.reshape(len(rows), -1)
    kept = flat @ cosines(SHAPE, 6).T - store.mean.T
    assert float(jnp.abs(store.coefficients).max()) < 2 * float(jnp.linalg.norm(flat, axis=1).max())
    # No worse than the mean image.
    assert float(jnp.mean((store.coefficients @ store.spectra - kept) ** 2)) <= float(jnp.mean(kept**2))


def test_smooth_images_lose_little_and_cost_less():
    rows = images()
    flat = rows.reshape(len(rows), -1)
    lost = lambda store: float(jnp.mean((store.decode(store.codes) - flat) ** 2) / jnp.var(flat))
    assert lost(start(rows, 12, 48)) < 1.5 * lost(factored(fit_pca(flat, 12))(rows)) < 0.2


def test_chosen_images_are_those_of_the_whole():
    store = start(images(), 5, 20)
    index = jnp.array([3, 0])
    few = store.take(index, axis=0)
    np.testing.assert_allclose(few.decode(few.codes), store.decode(store.codes)[index], rtol=1e-5)


def test_every_part_receives_a_gradient():
    store = start(images(), 5, 20)
    gradient = jax.grad(lambda s: jnp.sum(s.decode(s.codes) ** 2))(store)
    assert all(float(jnp.abs(part).max()) > 0 for part in (gradient.mean, gradient.spectra, gradient.coefficients))
