"""Convolution with a 3 x 3 kernel in a quarter of the multiplications, in float32.

Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, eq. 8):
every 4 x 4 tile of outputs is Y = A^T [ (G g G^T) * (B^T d B) ] A, with g the kernel, d the 6 x 6 inputs that the tile depends on and
* elementwise, summed over input channels. Over all tiles, that is 36 matrix products; each change of basis is one more.

The price is rounding (root mean square against float64, 48 to 512 channels, 4 to 32 pixels): outputs and the gradient with respect to the
images have 2 to 6 times the error of a plain convolution, the gradient with respect to the kernel 3 to 7 times that of matrix products.
Errors also spread within a tile: they are relative to the largest of its inputs, so an input of 1e4 leaves errors of up to
1e-6 * 1e4 * (size of the kernel's entries) in outputs of its tile that do not depend on it, where a plain convolution leaves none.
"""

from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TILE, TAPS = 4, 3
PATCH = TILE + TAPS - 1
# A tile is evaluated at these points and at infinity. Lavin and Gray's (0, 1, -1, 2, -2) would double its rounding error.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T, G and B^T along one axis: polynomials are multiplied through their values at the points (Toom and Cook)."""
    others = [[other for other in POINTS if other != point] for point in POINTS]
    # Coefficients of the polynomials, lowest first; the point at infinity gives the highest.
    product = np.polynomial.polynomial.polyfromroots
    powers = lambda count: np.vstack([np.vander(POINTS, count, increasing=True), np.eye(count)[-1]])
    scale = [1.0 / np.prod(np.subtract(point, rest)) for point, rest in zip(POINTS, others, strict=True)]
    inputs = np.vstack([*(np.append(product(rest), 0.0) for rest in others), product(POINTS)])
    return powers(TILE).T, powers(TAPS) * np.append(scale, 1.0)[:, None], inputs


# Along height and width at once: "16 36", "36 9" and "36 36".
_OUTPUTS, _KERNEL, _INPUTS = (np.kron(matrix, matrix).astype(np.float32) for matrix in _matrices())


def convolve_by_tiles(
    images: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c C"], padding: Sequence[tuple[int, int]]
) -> Float[Array, "n h w C"]:
    """Convolve at stride 1."""
    (num_images, height, width, channels), num_outputs = images.shape, kernel.shape[-1]
    lengths = [length + sum(pad) - TAPS + 1 for length, pad in zip((height, width), padding, strict=True)]
    tiles = _tiles(lengths)
    patches = _patches(images, tiles, [before for before, _ in padding])
    values = jnp.matmul(_INPUTS, patches.reshape(PATCH**2, -1)).reshape(PATCH**2, -1, channels)
    weights = jnp.matmul(_KERNEL, kernel.reshape(TAPS**2, -1)).reshape(PATCH**2, channels, num_outputs)
    products = jnp.matmul(values, weights)
    outputs = jnp.matmul(_OUTPUTS, products.reshape(PATCH**2, -1)).reshape(TILE, TILE, num_images, *tiles, num_outputs)
    image = outputs.transpose(2, 3, 0, 4, 1, 5).reshape(num_images, tiles[0] * TILE, tiles[1] * TILE, num_outputs)
    return image[:, : lengths[0], : lengths[1]]


def _patches(images: Float[Array, "n H W c"], tiles: Sequence[int], before: Sequence[int]) -> Float[Array, "6 6 n t s c"]:
    """Return what every tile depends on: its own part of the images, and the first rows and columns of the parts after it.

    A slice for each of a patch's pixels is the same, and takes XLA's CPU backend up to ten times as long to compile.
    """
    num_images, height, width, channels = images.shape
    # Zeros fill up the last tile and the part after it; pixels beyond that are none that any tile depends on.
    sizes = [(count + 1) * TILE for count in tiles]
    edges = [(first, size - length - first, 0) for first, size, length in zip(before, sizes, (height, width), strict=True)]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    parts = padded.reshape(num_images, tiles[0] + 1, TILE, tiles[1] + 1, TILE, channels).transpose(2, 4, 0, 1, 3, 5)
    more = PATCH - TILE
    down = jnp.concatenate([parts[:, :, :, :-1], parts[:more, :, :, 1:]])
    return jnp.concatenate([down[:, :, :, :, :-1], down[:, :more, :, :, 1:]], axis=1)


def tiles_per_image(shape: Sequence[int]) -> int:
    """Return how many tiles an image of outputs "h w C" has."""
    return prod(_tiles(shape[:2]))


def _tiles(lengths: Sequence[int]) -> list[int]:
    """Return how many tiles cover each length; the last may reach beyond it."""
    return [-(-length // TILE) for length in lengths]
