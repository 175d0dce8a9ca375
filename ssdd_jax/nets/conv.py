"""Convolution that runs at about the rate of matrix products on CPUs too.

There XLA has three slow places, which are written otherwise: the gradient by the kernel (three to four times slower than its products),
that by the images where it is in a loop (eight times slower than the convolution that it is), and all of a convolution whose input has
few channels, as that of a first layer (up to ten times). The values are the same to rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "n H W c"]
Outputs = Float[Array, "n h w C"]
Kernel = Float[Array, "k l c C"]

# What takes fewer operations than that is over in a few milliseconds anyway, and is compiled twice as fast as it is.
LEAST_OPERATIONS = 50_000_000
# With at most so many taps times input channels, all that an output depends on is gathered into one row.
MOST_GATHERED = 64
# So many images of a product are summed up at a time: they stay in a core's cache.
IMAGES_AT_ONCE = 8


class Window(NamedTuple):
    """How the kernel moves: strides and padding along height and width, and the precision of products."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any = None


def convolve(images: Images, kernel: Kernel, strides: Sequence[int], padding: Sequence[tuple[int, int]], **settings: Any) -> Outputs:
    """Convolve as `jax.lax.conv_general_dilated` does, in whose place flax calls it; NHWC, without groups or dilation."""
    (top, bottom), (left, right) = padding
    # Read here, since the gradient is traced when a surrounding `jax.default_matmul_precision` is over.
    config: Any = jax.config
    precision = settings.get("precision") or config.jax_default_matmul_precision
    return _convolve(images, kernel, Window((strides[0], strides[1]), ((top, bottom), (left, right)), precision))


def _plain(images: Images, kernel: Kernel, window: Window) -> Outputs:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, window.strides, window.padding, dimension_numbers=layout, precision=window.precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: Images, kernel: Kernel, window: Window) -> Outputs:
    plain = partial(_plain, window=window)
    if not _few_channels(kernel) or _is_small(images, kernel, window):
        return plain(images, kernel)
    gathered = lambda images, kernel: jnp.matmul(_gather(images, kernel, window), _matrix(kernel), precision=window.precision)
    return _by_platform(gathered, plain, images, kernel)


def _forward(images: Images, kernel: Kernel, window: Window) -> tuple[Outputs, tuple[Images, Kernel]]:
    return _convolve(images, kernel, window), (images, kernel)


def _backward(window: Window, inputs: tuple[Images, Kernel], gradient: Outputs) -> tuple[Images, Kernel]:
    plain = partial(_plain, window=window)
    plain_by_images = lambda images, kernel, gradient: jax.vjp(lambda x: plain(x, kernel), images)[1](gradient)[0]
    plain_by_kernel = lambda images, kernel, gradient: jax.vjp(lambda k: plain(images, k), kernel)[1](gradient)[0]
    if _is_small(*inputs, window):
        return plain_by_images(*inputs, gradient), plain_by_kernel(*inputs, gradient)
    by_images = partial(_by_images, window=window) if window.strides == (1, 1) else plain_by_images
    return (
        _by_platform(by_images, plain_by_images, *inputs, gradient),
        _by_platform(partial(_by_kernel, window=window), plain_by_kernel, *inputs, gradient),
    )


_convolve.defvjp(_forward, _backward)


def _by_platform(cpu: Callable, plain: Callable, *args: Array) -> Array:
    """Return what the function for the platform returns that the code is compiled for."""
    return jax.lax.platform_dependent(*args, cpu=cpu, default=plain)


def _few_channels(kernel: Kernel) -> bool:
    height, width, channels, _ = kernel.shape
    return height * width * channels <= MOST_GATHERED


def _is_small(images: Images, kernel: Kernel, window: Window) -> bool:
    outputs = jax.eval_shape(partial(_plain, window=window), images, kernel)
    return 2 * outputs.size * kernel.size // kernel.shape[-1] < LEAST_OPERATIONS


def _matrix(kernel: Kernel) -> Float[Array, "klc C"]:
    return kernel.reshape(-1, kernel.shape[-1])


def _taps(images: Images, kernel: Kernel, window: Window) -> list[Float[Array, "n h w c"]]:
    """Return what each tap of the kernel is multiplied with."""
    padded = jnp.pad(images, ((0, 0), *window.padding, (0, 0)))
    height, width = kernel.shape[:2]
    rows = [slice(i, padded.shape[1] - height + i + 1, window.strides[0]) for i in range(height)]
    columns = [slice(j, padded.shape[2] - width + j + 1, window.strides[1]) for j in range(width)]
    return [padded[:, row, column] for row in rows for column in columns]


def _gather(images: Images, kernel: Kernel, window: Window) -> Float[Array, "n h w klc"]:
    return jnp.concatenate(_taps(images, kernel, window), axis=-1)


def _by_images(images: Images, kernel: Kernel, gradient: Outputs, window: Window) -> Images:
    """Return the gradient by the images, at stride 1."""
    if _few_channels(kernel):
        # That of every gathered row, added up where rows overlap.
        rows = jnp.matmul(gradient, _matrix(kernel).T, precision=window.precision)
        return jax.vjp(lambda images: _gather(images, kernel, window), images)[1](rows)[0]
    # It is a convolution with the kernel turned round.
    (top, bottom), (left, right) = window.padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    turned = ((height - top, height - bottom), (width - left, width - right))
    return _plain(gradient, kernel[::-1, ::-1].swapaxes(2, 3), window._replace(padding=turned))


def _by_kernel(images: Images, kernel: Kernel, gradient: Outputs, window: Window) -> Kernel:
    """Return the gradient by the kernel: the sum over images and places of what a tap is multiplied with times the gradient."""

    def products(images: Images, gradient: Outputs) -> Float[Array, "klc C"]:
        flat = gradient.reshape(-1, gradient.shape[-1])
        taps = [_gather(images, kernel, window)] if _few_channels(kernel) else _taps(images, kernel, window)
        return jnp.concatenate([jnp.matmul(tap.reshape(-1, tap.shape[-1]).T, flat, precision=window.precision) for tap in taps])

    # Images of zeros add nothing.
    fill = -len(images) % IMAGES_AT_ONCE
    chunks = lambda x: jnp.pad(x, ((0, fill), (0, 0), (0, 0), (0, 0))).reshape(-1, IMAGES_AT_ONCE, *x.shape[1:])
    add = lambda total, chunk: (total + products(*chunk), None)
    return jax.lax.scan(add, jnp.zeros_like(_matrix(kernel)), (chunks(images), chunks(gradient)))[0].reshape(kernel.shape)
