"""Kernels of infinitely wide convolutional networks with pooling, for small images: covariances of all pairs of pixels are needed."""

from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssdd_jax.core.bases import HIGHEST, at_least_float32
from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.kernels.infinite import BIAS_VARIANCE, WEIGHT_VARIANCE, Kind, arc_cosines, check_inputs, maker, window_mean

MAX_NUMBERS = 2**26
"""Limit on the numbers n1 n2 (H W)^2 of one layer, 256 MB of float32; above it rows are computed block by block."""

# Axes of the rows and of the columns of both images.
PIXELS = ((0, 2), (1, 3))


class _Layer(NamedTuple):
    """Covariances after a layer: of left with right images "h w h' w' n1 n2", their tangent kernel, and of each image with itself.

    The latter are "h w h' w' n1" and "h w h' w' n2": pooling takes the covariances of different pixels of an image, too.
    """

    cross: Array
    tangent: Array
    left: Array
    right: Array


def _dense(layer: _Layer, mean: bool = True) -> _Layer:
    """Return the layer after a convolution with windows of 3 x 3 pixels, or without `mean` after a dense layer."""
    window = (lambda pixels: window_mean(pixels, 3, PIXELS)) if mean else lambda pixels: pixels
    cross, left, right = (WEIGHT_VARIANCE * window(part) + BIAS_VARIANCE for part in (layer.cross, layer.left, layer.right))
    return _Layer(cross, cross + WEIGHT_VARIANCE * window(layer.tangent), left, right)


def _deviations(covariances: Array) -> Array:
    """Return the standard deviation of every pixel of every image, "h w n"."""
    h, w = covariances.shape[:2]
    rows = covariances.reshape(h * w, h * w, -1)
    return jnp.sqrt(jnp.moveaxis(jnp.diagonal(rows), -1, 0)).reshape(h, w, -1)


def _relu(layer: _Layer) -> _Layer:
    left, right = _deviations(layer.left), _deviations(layer.right)

    def after(covariances: Array, first: Array, second: Array) -> tuple[Array, Array]:
        # One factor after the other: their product would overflow long before they do.
        slope, value = arc_cosines(covariances / first / second)
        return first * value * second, slope

    cross, slope = after(layer.cross, left[:, :, None, None, :, None], right[None, None, :, :, None, :])
    own = lambda covariances, deviations: after(covariances, deviations[:, :, None, None], deviations[None, None])[0]
    return _Layer(cross, layer.tangent * slope, own(layer.left, left), own(layer.right, right))


def _pool(pixels: Array) -> Array:
    """Return the covariances of means of 2 x 2 pixels; an odd last row or column is left out, as in the networks."""
    h, w, h2, w2 = (size // 2 for size in pixels.shape[:4])
    cut = pixels[: 2 * h, : 2 * w, : 2 * h2, : 2 * w2]
    return cut.reshape(h, 2, w, 2, h2, 2, w2, 2, *pixels.shape[4:]).mean((1, 3, 5, 7))


def _block(x1: Array, x2: Array, depth: int, kind: Kind) -> Array:
    channels = x1.shape[-1]
    of = partial(jnp.einsum, precision=HIGHEST)
    cross = of("aijc,bklc->ijklab", x1, x2) / channels
    own = lambda x: of("aijc,aklc->ijkla", x, x) / channels
    layer = _Layer(cross, jnp.zeros_like(cross), own(x1), own(x2))
    for _ in range(depth):
        layer = jax.tree.map(_pool, _relu(_dense(layer)))
    # Flattening takes equal pixels of both images.
    flat = lambda pixels: jnp.einsum("ijij...->...", pixels) / prod(pixels.shape[:2])
    last = _dense(jax.tree.map(flat, layer), mean=False)
    return last.tangent if kind == "ntk" else last.cross


@partial(jax.jit, static_argnames=("depth", "kind", "chunk_size"))
def _pooled(x1: Array, x2: Array, *, depth: int, kind: Kind, chunk_size: int) -> Array:
    return map_in_chunks(lambda rows: _block(rows, x2, depth, kind), x1, chunk_size, remat=chunk_size < len(x1))


def pooled_kernel(x1: Array, x2: Array, *, depth: int = 3, kind: Kind = "ntk", max_numbers: int = MAX_NUMBERS) -> Float[Array, "n1 n2"]:
    """Compute the kernel of an infinitely wide ConvNet: `depth` times (3 x 3 conv, ReLU, 2 x 2 average pooling), then flatten and dense.

    As `ssdd_jax.kernels.infinite.conv_kernel`, for every pair of pixels K[p, q] = <x[p], x'[q]> / C: a convolution takes the mean over
    windows around p and q that move jointly, pooling the mean over 2 x 2 pixels of both (Arora et al., 2019; the ConvNet of KIP). A pair
    of images takes (H W)^2 numbers in the first layer: 16 kB at 8 x 8 pixels, 4 MB at 32 x 32.

    Args:
        x1: images "n1 H W C".
        x2: images "n2 H W C", the smaller set of the two: their number is what memory limits.
        depth: number of blocks.
        kind: see `ssdd_jax.kernels.infinite.fc_kernel`.
        max_numbers: limit on n1 n2 (H W)^2; above it rows of x1 are computed block by block, to the same values.

    Raises:
        ValueError: shapes do not match, pooling leaves nothing, kind is unknown, or one row of x1 exceeds `max_numbers` already.

    Example:
        >>> pooled_kernel(jnp.zeros((3, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))).shape
        (3, 2)
    """
    check_inputs("pooled_kernel", x1, x2, 4, depth, kind)
    height, width = x1.shape[1:3]
    if min(height, width) < 2**depth:
        raise ValueError(f"pooled_kernel: depth is {depth}, which pools {height} x {width} pixels to nothing; lower it")
    a_pair = (height * width) ** 2
    if len(x2) * a_pair > max_numbers:
        raise ValueError(
            f"pooled_kernel: {len(x2)} images of {height} x {width} pixels take {4 * len(x2) * a_pair / 1e9:.1f} GB for a single row, "
            f"{4 * max_numbers / 1e9:.1f} GB are allowed; expected at most {max_numbers // a_pair} images, smaller ones, or the kernel "
            "without pooling"
        )
    chunk_size = max(1, max_numbers // max(1, len(x2) * a_pair))
    return _pooled(at_least_float32(x1), at_least_float32(x2), depth=depth, kind=kind, chunk_size=chunk_size)


convnet_ntk = maker(pooled_kernel, "ntk", 3)
convnet_nngp = maker(pooled_kernel, "nngp", 3)
