import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ssdd_jax.core.approximation import Networks, fit_networks, init_networks, predict_shift
from ssdd_jax.core.bases import encode, fit_pca
from ssdd_jax.core.views import apply_views

pytestmark = pytest.mark.core


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def error(predicted, expected):
    return float(jnp.sum((predicted - expected) ** 2) / jnp.sum(expected**2))


def test_untrained_networks_predict_no_shift_but_their_first_layer_is_random(key):
    networks = init_networks(key, 3, 5, 4)
    np.testing.assert_array_equal(predict_shift(networks, draw(7, 5)), np.zeros((3, 7, 5)))
    limit = np.sqrt(6 / 5)
    assert float(jnp.abs(networks.w1).max()) <= limit
    assert float(jnp.abs(networks.w1).max()) > 0.8 * limit
    assert not np.array_equal(networks.w1[0], networks.w1[1])


@pytest.mark.parametrize("hidden", [0, 1, 4])
def test_a_network_has_as_many_numbers_as_the_formula_says(key, hidden):
    networks = init_networks(key, 1, 5, hidden)
    assert sum(leaf.size for leaf in jax.tree.leaves(networks)) == 2 * 5 * hidden + hidden + 5


def test_a_shift_is_two_layers_with_a_relu_between_them():
    networks = Networks(draw(2, 5, 4), draw(2, 4, seed=1), draw(2, 4, 5, seed=2), draw(2, 5, seed=3))
    c = draw(7, 5, seed=4)
    for a, shift in enumerate(predict_shift(networks, c)):
        w1, b1, w2, b2 = (np.asarray(leaf[a]) for leaf in (networks.w1, networks.b1, networks.w2, networks.b2))
        expected = np.maximum(np.asarray(c) @ w1 + b1, 0) @ w2 + b2
        np.testing.assert_allclose(shift, expected, rtol=1e-4, atol=1e-5)


def test_four_points_are_fitted_exactly(key):
    c, views = draw(4, 3), draw(2, 4, 3, seed=1)
    networks, fit = fit_networks(key, c, views, hidden=16)
    np.testing.assert_allclose(c[None] + predict_shift(networks, c), views, atol=0.01)
    np.testing.assert_allclose(fit, 1.0, atol=1e-3)


def test_a_stacked_fit_equals_separate_fits(key):
    c, views = draw(10, 3), draw(2, 10, 3, seed=1)
    stacked, fit = fit_networks(key, c, views, hidden=4, num_steps=100)
    for a in range(2):
        # The first layer of a lone network draws other numbers, so the stack holds the same view twice.
        twin, twin_fit = fit_networks(key, c, jnp.stack([views[a], views[a]]), hidden=4, num_steps=100)
        np.testing.assert_allclose(twin_fit[a], fit[a], rtol=1e-4)
        for ours, alone in zip(jax.tree.leaves(stacked), jax.tree.leaves(twin), strict=True):
            np.testing.assert_allclose(ours[a], alone[a], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("with_bases", [False, True])
def test_width_zero_gives_exactly_the_mean_shift(key, with_bases):
    c, views = draw(10, 3), draw(2, 10, 3, seed=1) + 4.0
    networks, fit = fit_networks(key, c, views, hidden=0, bases=draw(3, 6, seed=2) if with_bases else None)
    shifts = views - c[None]
    mean_shift = shifts.mean(1)
    np.testing.assert_allclose(predict_shift(networks, c), jnp.broadcast_to(mean_shift[:, None], (2, 10, 3)), atol=1e-5)
    if not with_bases:
        expected = 1 - ((shifts - mean_shift[:, None]) ** 2).sum((1, 2)) / (shifts**2).sum((1, 2))
        np.testing.assert_allclose(fit, expected, rtol=1e-4)


def test_the_networks_returned_are_those_whose_fit_is_returned(key):
    scales = jnp.array([[1e-3, 1.0, 1e3]])
    c = draw(30, 3) * scales + 5 * scales
    views = c[None] + jnp.stack([jnp.tanh(draw(30, 3)), draw(30, 3, seed=1)]) * scales[None]
    bases = draw(3, 6, seed=2) / scales.T
    networks, fit = fit_networks(key, c, views, hidden=8, bases=bases, num_steps=500)
    shifts = views - c[None]
    for a, predicted in enumerate(predict_shift(networks, c)):
        np.testing.assert_allclose(1 - error(predicted @ bases, shifts[a] @ bases), fit[a], atol=2e-3)


def test_coefficients_of_wildly_different_scales_fit_as_well_as_equal_ones(key):
    c, views = draw(30, 3), draw(1, 30, 3, seed=1)
    scales = jnp.array([[1e-2, 1.0, 1e3]])
    bases = draw(3, 6, seed=2)
    _, equal = fit_networks(key, c, views, hidden=8, bases=bases, num_steps=300)
    _, scaled = fit_networks(key, c * scales, views * scales[None], hidden=8, bases=bases / scales.T, num_steps=300)
    assert float(equal[0]) > 0.2
    np.testing.assert_allclose(scaled, equal, atol=0.02)


def test_a_constant_coefficient_does_not_enter_and_the_fit_is_that_of_the_networks_returned(key):
    c = draw(20, 4).at[:, 2].set(3.0)
    shifts = 0.5 * draw(1, 20, 4, seed=1)
    networks, fit = fit_networks(key, c, c[None] + shifts, hidden=8, num_steps=300)
    np.testing.assert_array_equal(networks.w1[:, 2], 0.0)
    assert float(jnp.abs(networks.w1).max()) < 100
    assert float(fit[0]) == pytest.approx(1 - error(predict_shift(networks, c), shifts), abs=1e-4)
    gradient = jax.grad(lambda rows: jnp.sum(predict_shift(networks, rows) ** 2))(c)
    assert float(jnp.abs(gradient).max()) < 100


def test_one_row_is_fitted_by_its_own_shift(key):
    c, shifts = draw(1, 4), draw(2, 1, 4, seed=1)
    networks, fit = fit_networks(key, c, c[None] + shifts, hidden=3, num_steps=5)
    np.testing.assert_allclose(predict_shift(networks, c), shifts, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit, 1.0, atol=1e-5)


def test_the_error_is_measured_in_representation_space(key):
    c, views = draw(40, 4), draw(1, 40, 4, seed=1)
    # Only the last coefficient shows in the representation.
    bases = jnp.zeros((4, 5)).at[3].set(1.0) + 1e-3 * draw(4, 5, seed=2)
    networks, fit = fit_networks(key, c, views, hidden=2, bases=bases)
    plain, _ = fit_networks(key, c, views, hidden=2)
    of_last = lambda nets: error(predict_shift(nets, c)[0, :, 3], views[0, :, 3] - c[:, 3])
    assert of_last(networks) < 0.9 * of_last(plain)
    np.testing.assert_allclose(1 - of_last(networks), fit[0], atol=0.01)


@pytest.mark.parametrize("hidden", [0, 4])
def test_beats_no_shift_on_representations_of_rotated_digits(key, hidden):
    images = jnp.asarray(load_digits().images[:300, ..., None] / 16, jnp.float32)
    rows = apply_views(images, ("identity", "rot90", "rot180", "rot270")).reshape(4, 300, 64)
    # Clipped random features stand in for a teacher's: not negative, with a large mean.
    reprs = jax.nn.relu(rows @ draw(64, 32) / 8)
    pca = fit_pca(reprs[0], 12)
    coefficients = encode(reprs, pca.mean, pca.bases)
    networks, fit = fit_networks(key, coefficients[0, :200], coefficients[1:, :200], hidden=hidden, bases=pca.bases, num_steps=500)
    shifts = (coefficients[1:] - coefficients[:1])[:, 200:]
    unseen = predict_shift(networks, coefficients[0, 200:])
    # Half a turn leaves the mean digit nearly as it is.
    assert all(error(unseen[a], shifts[a]) < 0.9 for a in ((0, 2) if hidden == 0 else (0, 1, 2)))


def test_a_wider_network_fits_better(key):
    c, views = draw(60, 6), jnp.abs(draw(60, 6))[None]
    fits = [float(fit_networks(key, c, views, hidden=hidden, num_steps=500)[1][0]) for hidden in (0, 2, 12)]
    assert fits[0] + 0.05 < fits[1] < fits[2] - 0.05


def test_fits_inside_jit_and_vmap_and_stops_the_gradient(key):
    c, views = draw(2, 10, 3), draw(2, 1, 10, 3, seed=1)
    fit = lambda c, v: fit_networks(key, c, v, hidden=2, num_steps=20)
    networks, fits = jax.jit(jax.vmap(fit))(c, views)
    np.testing.assert_allclose(fits[1], fit(c[1], views[1])[1], rtol=1e-3)
    assert networks.w1.shape == (2, 1, 3, 2)
    gradient = jax.grad(lambda c: fit(c, views[0])[1].sum())(c[0])
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_what_does_not_fit_is_refused(key):
    fit = inspect.unwrap(fit_networks)
    with pytest.raises(ValueError, match=r"shape \(2, 9, 3\), expected \(A, m, V\) with \(m, V\) = \(10, 3\)"):
        fit(key, jnp.ones((10, 3)), jnp.ones((2, 9, 3)), hidden=2)
    with pytest.raises(ValueError, match=r"shape \(10, 3\), expected \(A, m, V\)"):
        fit(key, jnp.ones((10, 3)), jnp.ones((10, 3)), hidden=2)
    with pytest.raises(ValueError, match="hidden is -1, expected at least 0"):
        fit(key, jnp.ones((10, 3)), jnp.ones((2, 10, 3)), hidden=-1)
