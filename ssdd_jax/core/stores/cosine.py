"""Images as coefficients over bases that are kept as their lowest frequencies.

A basis of pixels costs as much as an image. Natural images and their principal components are smooth, so that a few cosines say nearly all
of one (the discrete cosine transform of JPEG; distillation in the frequency domain is due to Shin et al., 2023).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.bases import HIGHEST, PCA, decode
from ssdd_jax.core.stores.factored import scale_factors
from ssdd_jax.core.stores.store import Start, StoreKind

RCOND = 1e-3
"""Share of the largest singular value below which the kept frequencies of bases say nothing new."""
COLOUR = 4.0
"""Images vary less in colour than in brightness: a change of colour counts as this many times the square of a change in space."""


@cache
def lowest_frequencies(shape: tuple[int, int, int], count: int) -> tuple[tuple[int, int, int], ...]:
    """Return the `count` frequencies of images of a shape (h, w, C) that are kept first: half periods down, across and over the colours.

    Example:
        >>> lowest_frequencies((8, 8, 1), 4)
        ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0))
    """
    height, width, channels = shape
    longer = max(height, width)

    def distance(frequency: tuple[int, int, int]) -> float:
        down, across, colour = frequency
        # In a rectangle a period is as long in pixels in both directions.
        return ((down * longer / height) ** 2 + (across * longer / width) ** 2 + 1) * (COLOUR * colour or 1.0)

    return tuple(sorted(product(range(height), range(width), range(channels)), key=distance)[:count])


def cosines(shape: tuple[int, int, int], count: int) -> Float[Array, "K p"]:
    """Return the `count` lowest cosines of images of a shape (h, w, C), flattened: orthonormal rows.

    Example:
        >>> rows = cosines((4, 4, 3), 10)
        >>> bool(jnp.allclose(rows @ rows.T, jnp.eye(10), atol=1e-5))
        True
    """
    frequencies = jnp.array(lowest_frequencies(shape, count))
    rows = jnp.ones((len(frequencies), 1))
    for axis, side in enumerate(shape):
        frequency = frequencies[:, axis, None]
        scale = jnp.sqrt(jnp.where(frequency == 0, 1, 2) / side)
        of_axis = scale * jnp.cos(jnp.pi / side * frequency * (jnp.arange(side) + 0.5)[None])
        rows = (rows[:, :, None] * of_axis[:, None]).reshape(len(rows), -1)
    return rows


@struct.dataclass
class Cosines:
    """Images kept as coefficients over bases, of which the lowest frequencies are kept: (coefficients @ spectra + mean) @ cosines.

    Attributes:
        mean: the frequencies of the mean image "K 1".
        spectra: the frequencies of the bases "U K".
        coefficients: coefficients "m U".
        grid: "0 h w C", no numbers at all: its shape is where that of the images is kept.
    """

    mean: Float[Array, "K 1"]
    spectra: Float[Array, "U K"]
    coefficients: Float[Array, "m U"]
    grid: Float[Array, "0 h w C"]

    @property
    def codes(self) -> Float[Array, "m U"]:
        """Return the coefficients."""
        return self.coefficients

    @property
    def bases(self) -> Float[Array, "U p"]:
        """Return the bases as flattened images."""
        return self._pixels(self.spectra)[0]

    def decode(self, codes: Float[Array, "*T m U"]) -> Float[Array, "*T m p"]:
        """Return codes @ bases + the mean image."""
        mean, bases = self._pixels(self.mean.T, self.spectra)
        return decode(codes, mean[0], bases)

    def take(self, index: Int[Array, " k"], axis: int) -> "Cosines":
        """Return the chosen images; mean and bases are shared."""
        return replace(self, coefficients=self.coefficients[(slice(None),) * axis + (index,)])

    def _pixels(self, *spectra: Float[Array, "_ K"]) -> list[Float[Array, "_ p"]]:
        _, height, width, channels = self.grid.shape
        waves = cosines((height, width, channels), len(self.mean)).astype(self.mean.dtype)
        return [jnp.matmul(rows, waves, precision=HIGHEST) for rows in spectra]


def cosine(pca: PCA | Callable[[], PCA], frequencies: int, factor_scale: float | str = "balanced") -> Start:
    """Return a function that turns images into `Cosines`.

    Args:
        pca: principal components "U p" of flattened real images, or a function that returns them.
        frequencies: K, how many frequencies of a basis are kept: at least U, at most the numbers of an image.
        factor_scale: see `ssdd_jax.core.stores.factored.factored`.

    Example:
        >>> from ssdd_jax.core.bases import fit_pca
        >>> images = jnp.arange(5 * 48.0).reshape(5, 4, 4, 3) ** 0.5
        >>> cosine(fit_pca(images.reshape(5, -1), 2), 6)(images).spectra.shape
        (2, 6)
    """

    def start(images: Float[Array, "m h w C"]) -> Cosines:
        fitted = pca if isinstance(pca, PCA) else pca()
        _, height, width, channels = images.shape
        waves = cosines((height, width, channels), frequencies).astype(images.dtype)
        to_spectra = lambda rows: jnp.matmul(rows.reshape(len(rows), -1), waves.T, precision=HIGHEST)
        mean, spectra = to_spectra(fitted.mean[None]), to_spectra(fitted.bases)
        # Without the higher frequencies bases are no longer orthonormal, so coefficients are those of least squares; of bases that hardly
        # differ any more, the shortest.
        coefficients = jnp.linalg.lstsq(spectra.T, (to_spectra(images) - mean).T, rcond=RCOND)[0].T
        spectra, coefficients = scale_factors(spectra, coefficients, factor_scale)
        return Cosines(mean.T, spectra, coefficients, jnp.zeros((0, height, width, channels)))

    return start


STORE = StoreKind(
    Cosines, lambda sizes: cosine(lambda: sizes.pca(sizes.num_bases), sizes.frequencies, sizes.factor_scale), ("num_bases", "frequencies")
)
