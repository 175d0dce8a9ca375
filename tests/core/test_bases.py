import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.bases import decode, encode, fit_pca

pytestmark = pytest.mark.core


@pytest.fixture
def rows():
    random = np.random.RandomState(0)
    # A large mean: a centred decomposition that loses it reconstructs nothing.
    return jnp.asarray(random.normal(size=(40, 8)) * np.arange(1, 9) + 20.0, jnp.float32)


def reconstruct(rows, pca):
    return decode(encode(rows, pca.mean, pca.bases), pca.mean, pca.bases)


@pytest.mark.parametrize("num_components", [1, 3, 8])
def test_bases_are_orthonormal_and_the_leading_ones(rows, num_components):
    pca = fit_pca(rows, num_components)
    np.testing.assert_allclose(pca.bases @ pca.bases.T, np.eye(num_components), atol=1e-5)
    values, vectors = np.linalg.eigh(np.cov(np.asarray(rows, np.float64), rowvar=False, bias=True))
    np.testing.assert_allclose(pca.variances, values[::-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.diag(pca.bases @ vectors[:, ::-1][:, :num_components])), 1.0, atol=1e-4)


def test_full_rank_reconstructs_exactly(rows):
    np.testing.assert_allclose(reconstruct(rows, fit_pca(rows, 8)), rows, rtol=1e-5)


@pytest.mark.parametrize("num_components", [1, 3, 7])
def test_reconstruction_error_equals_the_discarded_variance(rows, num_components):
    pca = fit_pca(rows, num_components)
    error = jnp.mean(jnp.sum((reconstruct(rows, pca) - rows) ** 2, 1))
    np.testing.assert_allclose(error, pca.variances[num_components:].sum(), rtol=1e-4)


def test_the_sign_of_a_basis_does_not_depend_on_the_order_of_the_rows(rows):
    bases = fit_pca(rows, 8).bases
    np.testing.assert_allclose(fit_pca(rows[::-1], 8).bases, bases, atol=1e-4)
    assert bool((jnp.take_along_axis(bases, jnp.argmax(jnp.abs(bases), 1, keepdims=True), 1) > 0).all())


def test_more_columns_than_rows_give_up_to_one_component_less_than_rows(rows):
    few = rows[:4]
    np.testing.assert_allclose(reconstruct(few, fit_pca(few, 3)), few, rtol=1e-4)
    with pytest.raises(ValueError, match=r"num_components is 4, expected 1 to 3 for rows of shape \(4, 8\)"):
        fit_pca(few, 4)


def test_few_rows_have_the_components_of_their_covariance():
    rows = jnp.asarray(np.random.RandomState(3).normal(size=(12, 40)) * np.linspace(3, 0.1, 40), jnp.float32)
    pca = fit_pca(rows, 8)
    centred = np.asarray(rows, np.float64) - np.asarray(rows, np.float64).mean(0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / 12)
    assert pca.variances.shape == (40,)
    np.testing.assert_allclose(pca.variances, np.maximum(variances[::-1], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.asarray(pca.bases) @ vectors[:, ::-1][:, :8]), np.eye(8), atol=1e-3)
    # No matrix of 40 x 40 is formed.
    assert "40,40" not in str(jax.make_jaxpr(lambda rows: fit_pca(rows, 8))(rows))


def test_rows_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match=r"rows has shape \(2, 3, 4\), expected \(n, p\); flatten"):
        inspect.unwrap(fit_pca)(jnp.zeros((2, 3, 4)), 1)


def test_coefficients_of_several_axes_decode_as_each_of_their_matrices(rows):
    pca = fit_pca(rows, 3)
    stacked = jnp.stack([rows, 2 * rows])
    coefficients = encode(stacked, pca.mean, pca.bases)
    np.testing.assert_allclose(coefficients[1], encode(2 * rows, pca.mean, pca.bases), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(decode(coefficients, pca.mean, pca.bases)[0], reconstruct(rows, pca), rtol=1e-5)


def test_works_inside_jit_vmap_and_grad(rows):
    error = lambda scale: jnp.mean((reconstruct(rows * scale, fit_pca(rows * scale, 3)) - rows * scale) ** 2)
    scales = jnp.array([1.0, 2.0])
    errors = jax.jit(jax.vmap(error))(scales)
    np.testing.assert_allclose(errors[1], 4 * errors[0], rtol=1e-3)
    # error(s) = s^2 error(1).
    np.testing.assert_allclose(jax.jit(jax.grad(error))(1.0), 2 * errors[0], rtol=1e-2)
