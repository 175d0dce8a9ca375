"""Principal components: the low-dimensional bases that images and representations are parameterized by."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Num

HIGHEST = jax.lax.Precision.HIGHEST


@struct.dataclass
class PCA:
    """A fitted principal component analysis.

    Attributes:
        mean: "p", the mean row.
        bases: "r p", orthonormal rows, largest variance first.
        variances: "p", the variance along every component of the data, kept or not, largest first.
    """

    mean: Float[Array, " p"]
    bases: Float[Array, "r p"]
    variances: Float[Array, " p"]


def at_least_float32(array: Num[Array, "*n"]) -> Float[Array, "*n"]:
    """Return integers and floats of 16 bits as float32, and others as they are."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def fit_pca(rows: Num[Array, "n p"], num_components: int) -> PCA:
    """Fit the leading principal components: the eigenvectors of (X - mean)^T (X - mean) / n.

    Signs are fixed so that the entry of largest magnitude in every basis row is positive.

    Args:
        rows: "n p", one observation per row; integers and floats of 16 bits are computed in float32.
        num_components: how many basis rows to keep, between 1 and min(n - 1, p).

    Raises:
        ValueError: `rows` is not a matrix or `num_components` is out of range.

    Example:
        >>> pca = fit_pca(jax.random.normal(jax.random.key(0), (100, 8)), 3)
        >>> pca.bases.shape
        (3, 8)
    """
    if rows.ndim != 2:
        raise ValueError(f"fit_pca: rows has shape {rows.shape}, expected (n, p); flatten each observation")
    limit = min(rows.shape[0] - 1, rows.shape[1])
    if not 1 <= num_components <= limit:
        raise ValueError(f"fit_pca: num_components is {num_components}, expected 1 to {limit} for rows of shape {rows.shape}")
    rows = at_least_float32(rows)
    mean = rows.mean(0)
    centred = rows - mean[None]
    (num_rows, width), product = rows.shape, partial(jnp.matmul, precision=HIGHEST)
    if num_rows >= width:
        variances, vectors = jnp.linalg.eigh(product(centred.T, centred) / num_rows)
        bases = vectors[:, ::-1][:, :num_components].T
    else:
        # The smaller of the two matrices has the same variances; its eigenvectors, sent through the rows, span the bases.
        variances, vectors = jnp.linalg.eigh(product(centred, centred.T) / num_rows)
        bases = jnp.linalg.qr(product(centred.T, vectors[:, ::-1][:, :num_components]))[0].T
        variances = jnp.concatenate([jnp.zeros(width - num_rows), variances])
    largest = jnp.take_along_axis(bases, jnp.argmax(jnp.abs(bases), axis=1, keepdims=True), axis=1)
    return PCA(mean=mean, bases=bases * jnp.where(largest < 0, -1.0, 1.0), variances=jnp.maximum(variances[::-1], 0.0))


def _as_row(vector: Float[Array, " p"], ndim: int) -> Float[Array, "*ones p"]:
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def encode(rows: Float[Array, "*n p"], mean: Float[Array, " p"], bases: Float[Array, "r p"]) -> Float[Array, "*n r"]:
    """Return the coefficients (X - mean) B^T; exact least squares when the rows of B are orthonormal.

    Example:
        >>> encode(jnp.ones((5, 3)), jnp.zeros(3), jnp.eye(3)[:2]).shape
        (5, 2)
    """
    return jnp.matmul(rows - _as_row(mean, rows.ndim), bases.T, precision=HIGHEST)


def decode(coefficients: Float[Array, "*n r"], mean: Float[Array, " p"], bases: Float[Array, "r p"]) -> Float[Array, "*n p"]:
    """Return the rows C B + mean: images X = C_x B_x + mu_x and representations Y = C_y B_y + mu_y of Yu et al. (2025).

    Example:
        >>> decode(jnp.ones((5, 2)), jnp.zeros(3), jnp.eye(3)[:2]).shape
        (5, 3)
    """
    return jnp.matmul(coefficients, bases, precision=HIGHEST) + _as_row(mean, coefficients.ndim)
