"""Kernels of infinitely wide networks in closed form: fully connected, and convolutional without pooling.

Of a convolutional network without pooling only covariances of equal pixels are ever needed, N1 N2 H W numbers; pooling needs those of all
pairs of pixels, see `ssdd_jax.kernels.pooled`. Products run in full float32, as those of the regression do; float64 stays float64.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssdd_jax.core.bases import HIGHEST, at_least_float32
from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import RidgeScale, kernel_predict
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.sharding import Shard, unsharded

Kind = Literal["ntk", "nngp"]

WEIGHT_VARIANCE, BIAS_VARIANCE = 2.0, 0.01
"""Of every layer, the read-out's too (W_std sqrt 2 and b_std .1, as in KIP); a weight's is divided by the layer's fan-in."""
MAX_NUMBERS = 2**22
"""Limit on the numbers N1 N2 H W of one layer; above it rows are computed block by block."""
# Two inputs whose 1 - rho^2 is at most this many machine epsilons count as equal: rounding would be taken for an angle otherwise.
ROUNDING = 16


@jax.custom_jvp
def arc_cosines(rho: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return E[relu'(u) relu'(v)] and E[relu(u) relu(v)] for unit normals u and v of correlation rho (Cho and Saul, 2009).

    With a = arccos rho they are (pi - a) / (2 pi) and (sin a + (pi - a) cos a) / (2 pi). The second's derivative is the first. The first's
    is 1 / (2 pi sin a), and here 0 where rho is 1 (or -1): on the diagonal of a kernel the angle is 0 however an image moves.
    """
    apart, sine = _sine(rho)
    angle = jnp.where(apart, jnp.arctan2(sine, rho), jnp.where(rho > 0, 0.0, jnp.pi))
    cosine = jnp.clip(rho, -1.0, 1.0)
    return (jnp.pi - angle) / (2 * jnp.pi), (jnp.where(apart, sine, 0.0) + (jnp.pi - angle) * cosine) / (2 * jnp.pi)


def _sine(rho: Array) -> tuple[Array, Array]:
    """Return whether the angle is one that can be told from 0 and pi, and its sine, or 1."""
    square = (1 - rho) * (1 + rho)
    apart = square > ROUNDING * jnp.finfo(rho.dtype).eps
    return apart, jnp.sqrt(jnp.where(apart, square, 1.0))


@arc_cosines.defjvp
def _arc_cosines_jvp(primals, tangents):
    (rho,), (moved,) = primals, tangents
    slope, value = arc_cosines(rho)
    apart, sine = _sine(rho)
    return (slope, value), (jnp.where(apart, 1 / (2 * jnp.pi * sine), 0.0) * moved, slope * moved)


class _Layer(NamedTuple):
    """Covariances after a layer, pixels first: of left with right rows "*p n1 n2", their tangent kernel, and variances "*p n1", "*p n2"."""

    cross: Array
    tangent: Array
    left: Array
    right: Array


def _dense(layer: _Layer, size: int) -> _Layer:
    """Return the layer after a convolution with windows of size x size pixels, which for size 1 is a dense layer on every pixel."""
    covariance = lambda before: WEIGHT_VARIANCE * window_mean(before, size) + BIAS_VARIANCE
    cross = covariance(layer.cross)
    tangent = cross + WEIGHT_VARIANCE * window_mean(layer.tangent, size)
    return _Layer(cross, tangent, covariance(layer.left), covariance(layer.right))


def window_mean(pixels: Array, size: int, sides: Sequence[tuple[int, ...]] = ((0,), (1,))) -> Array:
    """Return the mean over windows of size x size pixels, with zeros outside.

    `sides` are the axes along which windows move, those of one side jointly.
    """
    shape = pixels.shape
    for axes in sides if size > 1 else ():
        padded = jnp.pad(pixels, [(size // 2,) * 2 if axis in axes else (0, 0) for axis in range(len(shape))])
        starts = [[i if axis in axes else 0 for axis in range(len(shape))] for i in range(size)]
        shifted = [jax.lax.slice(padded, start, [a + b for a, b in zip(start, shape, strict=True)]) for start in starts]
        pixels = sum(shifted[1:], shifted[0]) / size
    return pixels


def _relu(layer: _Layer) -> _Layer:
    # One factor after the other: their product would overflow long before they do.
    left, right = jnp.sqrt(layer.left)[..., :, None], jnp.sqrt(layer.right)[..., None, :]
    slope, value = arc_cosines(layer.cross / left / right)
    return _Layer(left * value * right, layer.tangent * slope, layer.left / 2, layer.right / 2)


def _block(x1: Array, x2: Array, depth: int, kind: Kind, size: int) -> Array:
    """Return the kernel "n1 n2" of images "n *p c"."""
    first = lambda x: jnp.moveaxis(x, 0, -2)
    left, right, width = first(x1), first(x2), x1.shape[-1]
    cross = jnp.einsum("...ac,...bc->...ab", left, right, precision=HIGHEST) / width
    variance = lambda x: jnp.sum(x * x, -1) / width
    layer = _Layer(cross, jnp.zeros_like(cross), variance(left), variance(right))
    for _ in range(depth):
        layer = _relu(_dense(layer, size))
    flat = jax.tree.map(lambda leaf: leaf.mean(tuple(range(x1.ndim - 2))), layer)
    last = _dense(flat, 1)
    return last.tangent if kind == "ntk" else last.cross


@partial(jax.jit, static_argnames=("depth", "kind", "size", "max_numbers"))
def _infinite(x1: Array, x2: Array, *, depth: int, kind: Kind, size: int, max_numbers: int) -> Array:
    """Return the kernel "n1 n2" of images "n *p c", computed for as many rows of x1 at a time as `max_numbers` allows."""
    chunk_size = max(1, max_numbers // max(1, len(x2) * prod(x1.shape[1:-1])))
    # What a block keeps for its gradient would add up to what does not fit.
    return map_in_chunks(lambda rows: _block(rows, x2, depth, kind, size), x1, chunk_size, remat=chunk_size < len(x1))


def check_inputs(where: str, x1: Array, x2: Array, ndim: int, depth: int, kind: Kind) -> None:
    """Refuse what a kernel of images cannot be computed of; `ndim` is that of both arrays, 0 any.

    Raises:
        ValueError: shapes do not match, depth is negative, or kind is unknown.
    """
    if (ndim and ndim != x1.ndim) or x1.ndim < 2 or x1.shape[1:] != x2.shape[1:]:
        expected = "(n, H, W, C)" if ndim == 4 else "(n, ...)"
        raise ValueError(f"{where}: shapes {x1.shape} and {x2.shape}, expected two batches {expected} of inputs of one shape")
    if depth < 0:
        raise ValueError(f"{where}: depth is {depth}, expected at least 0 hidden layers")
    if kind not in get_args(Kind):
        raise ValueError(f"{where}: kind is {kind!r}, expected one of {', '.join(get_args(Kind))}")


def fc_kernel(x1: Array, x2: Array, *, depth: int = 1, kind: Kind = "ntk", max_numbers: int = MAX_NUMBERS) -> Float[Array, "n1 n2"]:
    """Compute the kernel of an infinitely wide fully connected ReLU network: `depth` times (dense, ReLU), then dense.

    With K = <x, x'> / d at the input, a dense layer makes K 2 K + .01 and the tangent kernel T K + 2 T; a ReLU makes K
    sqrt(k k') E[relu(u) relu(v)] and T T E[relu'(u) relu'(v)] (`arc_cosines` at the correlation), with the variances k and k' of the two
    inputs (Jacot et al., 2018, in the parameterization of neural-tangents). Its gradient is finite for equal inputs.

    Args:
        x1: inputs "n1 ..." of any shape; they are flattened.
        x2: inputs "n2 ..." of the same shape.
        depth: number of hidden layers; 0 is a linear model.
        kind: 'ntk' (all layers are trained by gradient descent) or 'nngp' (only the read-out is; the network's prior).
        max_numbers: limit on n1 n2; above it rows of x1 are computed block by block, to the same values.

    Raises:
        ValueError: shapes do not match, depth is negative, or kind is unknown.

    Example:
        >>> fc_kernel(jnp.zeros((3, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)), depth=3).shape
        (3, 2)
    """
    check_inputs("fc_kernel", x1, x2, 0, depth, kind)
    flat = lambda x: at_least_float32(x).reshape(len(x), -1)
    return _infinite(flat(x1), flat(x2), depth=depth, kind=kind, size=1, max_numbers=max_numbers)


def conv_kernel(
    x1: Array, x2: Array, *, depth: int = 3, kind: Kind = "ntk", size: int = 3, max_numbers: int = MAX_NUMBERS
) -> Float[Array, "n1 n2"]:
    """Compute the kernel of an infinitely wide convolutional ReLU network: `depth` times (conv, ReLU), then flatten and dense.

    As `fc_kernel`, for every pixel: at the input K[p] = <x[p], x'[p]> / C; where a dense layer takes K, a convolution takes the mean of K
    over its window, zeros outside the image included. Flattening takes the mean over pixels (Novak et al., 2019).

    Args:
        x1: images "n1 H W C".
        x2: images "n2 H W C".
        depth: number of convolutions; 0 is a linear model.
        kind: see `fc_kernel`.
        size: side of the convolutions' windows, odd.
        max_numbers: limit on n1 n2 H W; above it rows of x1 are computed block by block, to the same values.

    Raises:
        ValueError: shapes do not match, depth is negative, kind is unknown, or size is even.

    Example:
        >>> conv_kernel(jnp.zeros((3, 8, 8, 1)), jnp.zeros((2, 8, 8, 1))).shape
        (3, 2)
    """
    check_inputs("conv_kernel", x1, x2, 4, depth, kind)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"conv_kernel: size is {size}, expected an odd number")
    images = at_least_float32(x1), at_least_float32(x2)
    return _infinite(*images, depth=depth, kind=kind, size=size, max_numbers=max_numbers)


def matrix_kernel(
    matrix: Callable[[Array, Array], Array], *, ridge: float = 1e-6, ridge_scale: RidgeScale = "trace", shard: Shard = unsharded
) -> Kernel:
    """Return the kernel of the outer loss, without members, for a function (x1, x2) -> K "n1 n2" of images.

    It may be any: one of this file, or a `kernel_fn` of neural-tangents with its `get` given. Gradients reach the support rows, but never
    the target images.

    Args:
        matrix: (images "n1 H W C", images "n2 H W C") -> "n1 n2", differentiable also where images are equal.
        ridge: see `ssdd_jax.core.krr.krr_predict`.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        shard: how rows are sharded over devices.
    """

    def predict(variables, support_images, support_targets, images):
        support, targets = shard("whole", support_images), shard("data", jax.lax.stop_gradient(images))
        return kernel_predict(matrix(support, support), support_targets, matrix(targets, support), ridge=ridge, ridge_scale=ridge_scale)

    return Kernel(predict, None)


def maker(matrix: Callable[..., Array], kind: Kind, default_depth: int) -> Callable[..., Kernel]:
    """Return what `ssdd_jax.registry.KERNELS` has of a function (x1, x2, depth=, kind=) -> K "n1 n2"."""

    def make(
        learner: Learner | None = None,
        *,
        depth: int = 0,
        ridge: float = 1e-6,
        ridge_scale: RidgeScale = "trace",
        chunk_size: int = 0,
        remat: bool = False,
        shard: Shard = unsharded,
    ) -> Kernel:
        """Return the kernel of the outer loss; a `depth` of 0 takes the default, `max_numbers` limits memory, and there are no members."""
        del learner, chunk_size, remat
        return matrix_kernel(partial(matrix, depth=depth or default_depth, kind=kind), ridge=ridge, ridge_scale=ridge_scale, shard=shard)

    return make


fc_ntk = maker(fc_kernel, "ntk", 1)
fc_nngp = maker(fc_kernel, "nngp", 1)
conv_ntk = maker(conv_kernel, "ntk", 3)
conv_nngp = maker(conv_kernel, "nngp", 3)
