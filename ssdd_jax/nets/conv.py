"""Convolution that on CPUs, too, runs at the speed of matrix products or faster.

XLA's CPU backend is slow in some cases; each is replaced: the gradient with respect to the kernel (three to six times slower than its
products), the gradient with respect to the images inside a loop (eight times slower than the convolution that it equals), everything
about a convolution whose input has few channels, such as a first layer's (up to ten times), kernels of 1 x 1 (up to twice), and
convolutions with one group per channel (tens of times). The values agree up to rounding. They also do where a 3 x 3 kernel of many
channels takes a quarter of the multiplications (`ssdd_jax.nets.winograd`), unless precision is "float32". The gradient is written by
hand, so there is no forward mode: see `plain_convolutions`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssdd_jax.core.batching import map_in_chunks, split_in_chunks, sum_in_chunks
from ssdd_jax.nets.winograd import PATCH, TAPS, convolve_by_tiles, tiles_per_image

Images = Float[Array, "n H W c"]
Outputs = Float[Array, "n h w C"]
Kernel = Float[Array, "k l c C"]

# Below this many operations a convolution takes a few milliseconds anyway, and compiles twice as fast unchanged.
MIN_OPERATIONS = 50_000_000
# Where input channels are few, XLA takes as long for a tenth of them.
SLOWER_WITH_FEW = 10
# With at most this many taps times input channels, everything that neighbouring outputs depend on is gathered into one row.
MAX_GATHERED = 96
# Neighbouring outputs that share a gathered row: 4 up to 16 output channels, 2 beyond. Longer rows are copied and multiplied faster,
# but the matrix that they are multiplied by has more zeros.
COLUMNS_UP_TO_16, COLUMNS = 4, 2
# Images whose products are summed together, and bytes of shifted copies: they stay in a core's cache.
IMAGES_AT_ONCE, COPIED_BYTES = 8, 500_000
# With fewer input or output channels, the changes of basis outweigh the multiplications that tiles save; the gradient with respect to the
# kernel has larger products otherwise, and needs more channels.
MIN_TILED, MIN_TILED_KERNEL = 48, 96
# Bytes of tile products that are held at a time.
TILED_BYTES = 20_000_000


class Window(NamedTuple):
    """How the kernel moves: strides and padding along height and width, and the precision of products."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    precision: Any = None


_fast = ContextVar("fast", default=True)


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Let `convolve` be `jax.lax.conv_general_dilated` while a function is traced: differentiable in forward mode and to any order.

    Nor has any other layer a gradient written by hand then.
    """
    token = _fast.set(False)
    try:
        yield
    finally:
        _fast.reset(token)


def is_fast() -> bool:
    """Return whether layers may have gradients written by hand: not within `plain_convolutions`."""
    return _fast.get()


def convolve(images: Images, kernel: Kernel, strides: Sequence[int], padding: Sequence[tuple[int, int]], **settings: Any) -> Outputs:
    """Convolve as `jax.lax.conv_general_dilated`, which it replaces in flax's layers; NHWC, without groups or dilation."""
    (top, bottom), (left, right) = padding
    # Read here, since the gradient is traced after a surrounding `jax.default_matmul_precision` has ended.
    config: Any = jax.config
    precision = settings.get("precision") or config.jax_default_matmul_precision
    window = Window((strides[0], strides[1]), ((top, bottom), (left, right)), precision)
    return _convolve(images, kernel, window) if is_fast() else _plain(images, kernel, window)


def _plain(images: Images, kernel: Kernel, window: Window) -> Outputs:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, window.strides, window.padding, dimension_numbers=layout, precision=window.precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: Images, kernel: Kernel, window: Window) -> Outputs:
    plain = partial(_plain, window=window)
    if _is_small(images, kernel, window):
        return plain(images, kernel)
    return _by_platform(partial(_on_cpu, window=window), plain, images, kernel)


def _forward(images: Images, kernel: Kernel, window: Window) -> tuple[Outputs, tuple[Images, Kernel]]:
    return _convolve(images, kernel, window), (images, kernel)


def _backward(window: Window, inputs: tuple[Images, Kernel], gradient: Outputs) -> tuple[Images, Kernel]:
    plain = partial(_plain, window=window)
    plain_by_images = lambda images, kernel, gradient: jax.vjp(lambda x: plain(x, kernel), images)[1](gradient)[0]
    plain_by_kernel = lambda images, kernel, gradient: jax.vjp(lambda k: plain(images, k), kernel)[1](gradient)[0]
    if _is_small(*inputs, window):
        return plain_by_images(*inputs, gradient), plain_by_kernel(*inputs, gradient)
    by_images = partial(_by_images, window=window) if _turns(inputs[1], window) else plain_by_images
    by_kernel = partial(_by_kernel, window=window)
    return (
        _by_platform(by_images, plain_by_images, *inputs, gradient),
        _by_platform(by_kernel, plain_by_kernel, *inputs, gradient),
    )


_convolve.defvjp(_forward, _backward)


def _by_platform(cpu: Callable, plain: Callable, *args: Array) -> Array:
    """Call `cpu` where the code is compiled for CPUs, else `plain`."""
    return jax.lax.platform_dependent(*args, cpu=cpu, default=plain)


def _few_channels(kernel: Kernel) -> bool:
    height, width, channels, _ = kernel.shape
    return height * width * channels <= MAX_GATHERED


def _outputs(images: Images, kernel: Kernel, window: Window) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(partial(_plain, window=window), images, kernel)


def _is_small(images: Images, kernel: Kernel, window: Window) -> bool:
    operations = 2 * _outputs(images, kernel, window).size * kernel.size // kernel.shape[-1]
    return operations < MIN_OPERATIONS // (SLOWER_WITH_FEW if _few_channels(kernel) else 1)


def _tiled_at_once(images: Images, kernel: Kernel, window: Window) -> int:
    """Return how many images are convolved by tiles at a time; 0 if tiles are not used."""
    exact = window.precision in ("float32", "highest", jax.lax.Precision.HIGHEST, (jax.lax.Precision.HIGHEST,) * 2)
    fits = kernel.shape[:2] == (TAPS, TAPS) and window.strides == (1, 1) and images.dtype == kernel.dtype == jnp.float32
    if exact or not fits or min(kernel.shape[2:]) < MIN_TILED:
        return 0
    largest = tiles_per_image(_outputs(images, kernel, window).shape[1:]) * max(kernel.shape[2:])
    return max(1, TILED_BYTES // (4 * PATCH**2 * largest))


def _is_product(kernel: Kernel, window: Window) -> bool:
    """Return whether each output depends on one pixel: of kernels of 1 x 1."""
    return kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0))


def _on_cpu(images: Images, kernel: Kernel, window: Window) -> Outputs:
    if _is_product(kernel, window):
        (pixels,) = _taps(images, kernel, window)
        return jnp.matmul(pixels, kernel[0, 0], precision=window.precision)
    if _few_channels(kernel):
        columns = _columns(kernel)
        rows = _gather(images, kernel, window, columns)
        outputs = jnp.matmul(_flat(rows), _matrix(kernel, window, columns), precision=window.precision)
        shape = _outputs(images, kernel, window).shape
        return outputs.reshape(*shape[:2], -1, shape[3])[:, :, : shape[2]]
    if at_once := _tiled_at_once(images, kernel, window):
        return map_in_chunks(lambda part: convolve_by_tiles(part, kernel, window.padding), images, at_once)
    return _plain(images, kernel, window)


def _flat(array: Array) -> Float[Array, "m k"]:
    # Products of two axes: of more, XLA copies them first.
    return array.reshape(-1, array.shape[-1])


def _columns(kernel: Kernel) -> int:
    return COLUMNS_UP_TO_16 if kernel.shape[-1] <= 16 else COLUMNS


def _matrix(kernel: Kernel, window: Window, columns: int) -> Float[Array, "ksc mC"]:
    """Return the matrix that turns a gathered row into m neighbouring outputs: m copies of the kernel, each a stride further on."""
    height, width, channels, outputs = kernel.shape
    step = window.strides[1]
    last = (columns - 1) * step
    shifted = [jnp.pad(kernel, ((0, 0), (i * step, last - i * step), (0, 0), (0, 0))) for i in range(columns)]
    return jnp.stack(shifted, axis=3).reshape(height * (width + last) * channels, columns * outputs)


def _taps(images: Images, kernel: Kernel, window: Window) -> list[Float[Array, "n h w c"]]:
    """Return, for each tap of the kernel, the pixels that it is multiplied by."""
    padded = jnp.pad(images, ((0, 0), *window.padding, (0, 0)))
    height, width = kernel.shape[:2]
    rows = [slice(i, padded.shape[1] - height + i + 1, window.strides[0]) for i in range(height)]
    columns = [slice(j, padded.shape[2] - width + j + 1, window.strides[1]) for j in range(width)]
    return [padded[:, row, column] for row in rows for column in columns]


def _gather(images: Images, kernel: Kernel, window: Window, columns: int) -> Float[Array, "n h b ksc"]:
    """Return, for each output row and each block of neighbouring outputs in it, what these depend on."""
    (height, width), (down, right) = kernel.shape[:2], window.strides
    rows, outputs = _outputs(images, kernel, window).shape[1:3]
    num_blocks, step, span = -(-outputs // columns), columns * right, (columns - 1) * right + width
    # A block is a part of the images of its own, and the first columns of the parts after it; one slice for each block compiles longer.
    num_parts = -(-span // step)
    (top, bottom), (left, _) = window.padding
    missing = (num_blocks + num_parts - 1) * step - images.shape[2] - left
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (top, bottom, 0), (left, missing, 0), (0, 0, 0)))
    parts = padded.reshape(*padded.shape[:2], -1, step, padded.shape[3])
    shifted = [parts[:, :, i : i + num_blocks, : span - i * step] for i in range(num_parts)]
    blocks = jnp.concatenate(shifted, axis=3).reshape(*padded.shape[:2], num_blocks, -1)
    return jnp.concatenate([blocks[:, i : i + (rows - 1) * down + 1 : down] for i in range(height)], axis=-1)


def _turns(kernel: Kernel, window: Window) -> bool:
    """Return whether the gradient with respect to the images is a convolution: at stride 1, unless outputs lie beyond the images."""
    return window.strides == (1, 1) and all(max(pad) < size for pad, size in zip(window.padding, kernel.shape, strict=False))


def _by_images(images: Images, kernel: Kernel, gradient: Outputs, window: Window) -> Images:
    """Return the gradient with respect to the images, where `_turns`."""
    if _few_channels(kernel) or _is_product(kernel, window):
        return jax.vjp(lambda images: _on_cpu(images, kernel, window), images)[1](gradient)[0]
    kernel, window = _turned(kernel, window)
    return _on_cpu(gradient, kernel.swapaxes(2, 3), window)


def _turned(kernel: Kernel, window: Window) -> tuple[Kernel, Window]:
    """Return the kernel rotated by half a turn, and the window that it moves in over the gradient."""
    (top, bottom), (left, right) = window.padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    return kernel[::-1, ::-1], window._replace(padding=((height - top, height - bottom), (width - left, width - right)))


def _by_kernel(images: Images, kernel: Kernel, gradient: Outputs, window: Window) -> Kernel:
    """Return the gradient with respect to the kernel, summed over parts of the images."""
    if _is_product(kernel, window):
        (pixels,) = _taps(images, kernel, window)
        return jnp.matmul(_flat(pixels).T, _flat(gradient), precision=window.precision).reshape(kernel.shape)
    if _few_channels(kernel):
        return jax.vjp(lambda kernel: _on_cpu(images, kernel, window), kernel)[1](gradient)[0]

    def by_taps(images: Images, gradient: Outputs) -> Kernel:
        # For each tap: its pixels times the gradient, summed over images and positions.
        taps = _taps(images, kernel, window)
        products = [jnp.matmul(_flat(tap).T, _flat(gradient), precision=window.precision) for tap in taps]
        return jnp.concatenate(products).reshape(kernel.shape)

    def by_shifts(images: Images, gradient: Outputs) -> Kernel:
        # All taps in one product: the images shifted along their width times the gradient shifted along its height.
        (rows, columns), ((top, _), (left, right)) = kernel.shape[:2], window.padding
        (height, width), tall = gradient.shape[1:3], images.shape[1]
        padded = jnp.pad(images, ((0, 0), (0, 0), (left, right), (0, 0)))
        across = [padded[:, :, j : j + width] for j in range(columns)]
        # At each row of the images, the gradient of the output row that the tap takes it to, or zeros where that is none.
        zero, kept = jnp.zeros((), gradient.dtype), (0, 0, 0)
        lows = [i - top for i in range(rows)]
        down = [jax.lax.pad(gradient, zero, (kept, (low, tall - height - low, 0), kept, kept)) for low in lows]
        product = jnp.matmul(_flat(jnp.concatenate(across, -1)).T, _flat(jnp.concatenate(down, -1)), precision=window.precision)
        return product.reshape(columns, kernel.shape[2], rows, kernel.shape[3]).transpose(2, 0, 1, 3)

    def by_tiles(images: Images, gradient: Outputs) -> Kernel:
        # Linear in the kernel, so that its gradient is the same at zeros.
        zeros = jnp.zeros(kernel.shape, kernel.dtype)
        return jax.vjp(lambda kernel: convolve_by_tiles(images, kernel, window.padding), zeros)[1](gradient)[0]

    if min(kernel.shape[2:]) >= MIN_TILED_KERNEL and (tiled_at_once := _tiled_at_once(images, kernel, window)):
        by_part, at_once = by_tiles, tiled_at_once
    elif window.strides == (1, 1):
        copied = kernel.shape[1] * kernel.shape[2] + kernel.shape[0] * kernel.shape[3]
        by_part, at_once = by_shifts, max(1, COPIED_BYTES // (4 * copied * images.shape[1] * gradient.shape[2]))
    else:
        by_part, at_once = by_taps, IMAGES_AT_ONCE
    return sum_in_chunks(by_part, (images, gradient), at_once)


def convolve_depthwise(
    images: Images, kernel: Float[Array, "k l 1 c"], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Outputs:
    """Convolve each channel with a kernel of its own."""
    (top, bottom), (left, right) = padding
    window = Window((strides[0], strides[1]), ((top, bottom), (left, right)))
    return (_convolve_depthwise if is_fast() else _depthwise)(images, kernel, window)


def _depthwise(images: Images, kernel: Kernel, window: Window) -> Outputs:
    # A sum over the taps: XLA's CPU backend runs a convolution with one group per channel tens of times slower.
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    return reduce(add, (tap * weight for tap, weight in zip(_taps(images, kernel, window), weights, strict=True)))


_convolve_depthwise = jax.custom_vjp(_depthwise, nondiff_argnums=(2,))


def _depthwise_forward(images: Images, kernel: Kernel, window: Window) -> tuple[Outputs, tuple[Images, Kernel]]:
    return _depthwise(images, kernel, window), (images, kernel)


def _depthwise_backward(window: Window, inputs: tuple[Images, Kernel], gradient: Outputs) -> tuple[Images, Kernel]:
    images, kernel = inputs
    if _turns(kernel, window):
        # XLA merges it with batch norm's gradient; the derived one, a sum of padded images, is then four times slower.
        by_images = _depthwise(gradient, *_turned(kernel, window))
    else:
        (by_images,) = jax.vjp(lambda images: _depthwise(images, kernel, window), images)[1](gradient)
    plain = lambda images, kernel, gradient: jax.vjp(lambda kernel: _depthwise(images, kernel, window), kernel)[1](gradient)[0]
    return by_images, _by_platform(partial(_depthwise_by_kernel, window=window), plain, images, kernel, gradient)


def _depthwise_by_kernel(images: Images, kernel: Kernel, gradient: Outputs, window: Window) -> Kernel:
    """Return the gradient with respect to the kernel, added up image by image: XLA's sums over shifted images take twice as long."""

    def add_part(total: Array, part: tuple[Images, Outputs]) -> tuple[Array, None]:
        images, gradient = part
        products = [(tap * gradient).astype(total.dtype) for tap in _taps(images, kernel, window)]
        return total + jnp.stack([reduce(add, list(product)) for product in products]), None

    parts = (split_in_chunks(images, IMAGES_AT_ONCE), split_in_chunks(gradient, IMAGES_AT_ONCE))
    start = jnp.zeros((kernel.shape[0] * kernel.shape[1], *gradient.shape[1:]), jnp.promote_types(gradient.dtype, jnp.float32))
    return jax.lax.scan(add_part, start, parts)[0].sum((1, 2)).reshape(kernel.shape).astype(kernel.dtype)


_convolve_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
