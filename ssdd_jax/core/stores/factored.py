"""Rows as coefficients over bases (Yu et al., 2025): X = C_x B_x + mu_x."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.bases import PCA, decode, encode
from ssdd_jax.core.stores.store import Start, StoreKind

SCALES = ("balanced", "each")
"""Words for `factor_scale`, see `factored`."""


@struct.dataclass
class Factors:
    """Rows kept as coefficients over bases: coefficients @ bases + mean.

    Attributes:
        mean: mean row "p".
        bases: basis rows "r p".
        coefficients: coefficients "m r", or "T m r" for T views.
    """

    mean: Float[Array, " p"]
    bases: Float[Array, "r p"]
    coefficients: Float[Array, "*T m r"]

    @property
    def codes(self) -> Float[Array, "*T m r"]:
        """Return the coefficients."""
        return self.coefficients

    def decode(self, codes: Float[Array, "*T m r"]) -> Float[Array, "*T m p"]:
        """Return codes @ bases + mean."""
        return decode(codes, self.mean, self.bases)

    def take(self, index: Int[Array, " k"], axis: int) -> "Factors":
        """Return the chosen rows or views; mean and bases are shared."""
        return replace(self, coefficients=self.coefficients[(slice(None),) * axis + (index,)])


def factored(pca: PCA | Callable[[], PCA], factor_scale: float | str = "balanced") -> Start:
    """Return a function that turns rows into `Factors`.

    Args:
        pca: principal components "r p" of real rows, or a function that returns them.
        factor_scale: bases are multiplied and coefficients divided by it. 'balanced' gives both the same root mean square, so that one
            learning rate moves both by the same relative amount; 'each' does so for every basis and its own coefficients, so that few bits
            are enough for the coefficients of an image: they differ less in size.

    Example:
        >>> factored(fit_pca(jnp.eye(5), 2))(jnp.ones((3, 5))).coefficients.shape
        (3, 2)
    """

    def start(rows: Float[Array, "*T m p"]) -> Factors:
        fitted = pca if isinstance(pca, PCA) else pca()
        # An image is flattened to one row.
        rows = rows.reshape(len(rows), -1) if rows.ndim == 4 else rows
        coefficients = encode(rows, fitted.mean, fitted.bases)
        bases, coefficients = scale_factors(fitted.bases, coefficients, factor_scale)
        # The mean is the caller's own array, not a copy, although a set is donated to its steps.
        return Factors(mean=fitted.mean, bases=bases, coefficients=coefficients)

    return start


def scale_factors(
    bases: Float[Array, "r p"], coefficients: Float[Array, "*T m r"], factor_scale: float | str
) -> tuple[Float[Array, "r p"], Float[Array, "*T m r"]]:
    """Return bases and coefficients with the same product; `factor_scale` is that of `factored`."""
    if factor_scale in SCALES:
        each = factor_scale == "each"
        rms = lambda x, axes: jnp.sqrt(jnp.mean(x**2, axes if each else None) + 1e-12)
        scale = jnp.sqrt(rms(coefficients, tuple(range(coefficients.ndim - 1))) / rms(bases, 1)).reshape(-1)
    else:
        scale = jnp.full(1, factor_scale, bases.dtype)
    return bases * scale[:, None], coefficients / scale.reshape((1,) * (coefficients.ndim - 1) + (-1,))


STORE = StoreKind(Factors, lambda sizes: factored(lambda: sizes.pca(sizes.num_bases), sizes.factor_scale), ("num_bases",))
