"""Images as coefficients over bases that are kept as their lowest frequencies.

A basis of pixels costs as much as an image. Natural images and their principal components are smooth, so that a few cosines say nearly all
of one (the discrete cosine transform of JPEG; distillation in the frequency domain is due to Shin et al., 2023).
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.bases import HIGHEST, decode
from ssdd_jax.core.stores.factored import scale_factors
from ssdd_jax.core.stores.store import Start, StoreKind, StoreSizes

COLOUR = 4.0
"""Images vary less in colour than in brightness: a change of colour counts as this many times the square of a change in space."""


def lowest_frequencies(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Return the frequencies "count 3" of images of a shape (h, w, C) that are kept first: half periods down, across and over channels.

    Example:
        >>> lowest_frequencies((8, 8, 1), 4).tolist()
        [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    """
    down, across, colour = np.indices(shape).reshape(3, -1)
    # In a rectangle a period is as long in pixels in both directions.
    longer = max(shape[:2])
    distance = (down * longer / shape[0]) ** 2 + (across * longer / shape[1]) ** 2
    order = np.argsort((distance + 1) * np.where(colour == 0, 1.0, COLOUR * colour), kind="stable")[:count]
    return np.stack([down, across, colour], -1)[order]


def cosines(shape: tuple[int, int, int], count: int) -> Float[Array, "K p"]:
    """Return the `count` lowest cosines of images of a shape (h, w, C), flattened: orthonormal rows.

    Example:
        >>> rows = cosines((4, 4, 3), 10)
        >>> bool(jnp.allclose(rows @ rows.T, jnp.eye(10), atol=1e-5))
        True
    """
    rows = jnp.ones((count, 1))
    for side, frequency in zip(shape, lowest_frequencies(shape, count).T, strict=True):
        angle = np.pi / side * frequency[:, None] * (np.arange(side)[None] + 0.5)
        of_axis = np.cos(angle) * np.sqrt(np.where(frequency[:, None] == 0, 1, 2) / side)
        rows = (rows[:, :, None] * jnp.asarray(of_axis, rows.dtype)[:, None]).reshape(count, -1)
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
        return self._pixels(self.spectra)

    def decode(self, codes: Float[Array, "*T m U"]) -> Float[Array, "*T m p"]:
        """Return codes @ bases + the mean image."""
        return decode(codes, self._pixels(self.mean.T)[0], self.bases)

    def take(self, index: Int[Array, " k"], axis: int) -> "Cosines":
        """Return the chosen images; mean and bases are shared."""
        return replace(self, coefficients=self.coefficients[(slice(None),) * axis + (index,)])

    def _pixels(self, spectra: Float[Array, "n K"]) -> Float[Array, "n p"]:
        _, height, width, channels = self.grid.shape
        return jnp.matmul(spectra, cosines((height, width, channels), spectra.shape[1]), precision=HIGHEST)


def cosine(sizes: StoreSizes) -> Start:
    """Return a function that turns images into `Cosines`, from the frequencies of the principal components of real images.

    There are at most as many bases as frequencies, and as many frequencies as an image has numbers.

    Raises:
        ValueError: no number of frequencies or of bases is given, as for representations.

    Example:
        >>> from ssdd_jax.core.bases import fit_pca
        >>> images = jnp.arange(5 * 48.0).reshape(5, 4, 4, 3) ** 0.5
        >>> sizes = StoreSizes(2, "each", lambda count: fit_pca(images.reshape(5, -1), count), frequencies=6)
        >>> cosine(sizes)(images).spectra.shape
        (2, 6)
    """
    if not sizes.frequencies or not sizes.num_bases:
        raise ValueError("store 'cosine' is for images, with image_bases and frequencies above 0")

    def start(images: Float[Array, "m h w C"]) -> Cosines:
        _, height, width, channels = images.shape
        shape = (height, width, channels)
        waves = cosines(shape, sizes.frequencies)
        to_spectra = lambda rows: jnp.matmul(rows.reshape(len(rows), -1), waves.T, precision=HIGHEST)
        pca = sizes.pca(sizes.num_bases)
        mean, spectra = to_spectra(pca.mean[None]), to_spectra(pca.bases)
        # Without the higher frequencies bases are no longer orthonormal, so coefficients are those of least squares.
        products = lambda other: jnp.matmul(other, spectra.T, precision=HIGHEST)
        coefficients = jnp.linalg.solve(products(spectra), products(to_spectra(images) - mean).T).T
        spectra, coefficients = scale_factors(spectra, coefficients, sizes.factor_scale)
        return Cosines(mean.T, spectra, coefficients, jnp.zeros((0, *shape)))

    return start


STORE = StoreKind(Cosines, cosine)
