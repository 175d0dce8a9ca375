"""The differentiable augmentation of label sets (Zhao and Bilen, 2021, "Dataset Condensation with Differentiable Siamese Augmentation").

One of the operations of a strategy is drawn per call: of the six published there, or of the six of FRePo (Zhou et al., 2022), of which two
are the same. In Siamese mode all images share the operation and its parameters, so that equal keys change a real and a synthetic batch
alike, whatever their sizes; otherwise they share the operation alone. Images are normalized: zero, which fills what lies outside, is the
mean colour.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssdd_jax.settings.augment import OPERATIONS

Image = Float[Array, "H W C"]
Shape = tuple[int, ...]

MAX_SCALE, MAX_ZOOM = 1.2, 1.25
MAX_DEGREES = 15.0
MAX_LOG_FACTOR = 0.25
MAX_TRANSLATION = 0.125
HOLE = 0.25


def color(image: Image, draws: Float[Array, "3"]) -> Image:
    """Change brightness, saturation and contrast, in this order; draws in [0, 1] of which 1/2 changes nothing.

    x + (u - 1/2), then 2u times the distance to the pixel's mean colour, then (u + 1/2) times the distance to the image's mean. The mean
    of a single channel is the channel: its saturation does not change.
    """
    return _stretch_colors(image + (draws[0] - 0.5), 2 * draws[1], draws[2] + 0.5)


def jitter(image: Image, factors: Float[Array, "3"]) -> Image:
    """Multiply brightness, saturation and contrast, in this order, by a factor each, of which 1 changes nothing (FRePo).

    The factors are e^u with u in +-1/4: of the image, of the distance to the pixel's mean colour, and of that to the image's mean.
    """
    return _stretch_colors(image * factors[0], factors[1], factors[2])


def _stretch_colors(image: Image, saturation: Float[Array, ""], contrast: Float[Array, ""]) -> Image:
    gray = image.mean(-1, keepdims=True)
    image = (image - gray) * saturation + gray
    mean = image.mean()
    return (image - mean) * contrast + mean


def crop_radius(side: int) -> int:
    """Return how many pixels a crop moves at most: an eighth of the side, rounded half up."""
    return int(0.125 * side + 0.5)


def crop(image: Image, shift: Int[Array, "2"]) -> Image:
    """Move the window by (rows, columns), each within +-`crop_radius`; zeros come in from outside."""
    radius = jnp.array([crop_radius(side) for side in image.shape[:2]])
    padded = jnp.pad(image, (*((crop_radius(side),) * 2 for side in image.shape[:2]), (0, 0)))
    row, column = radius + shift
    return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), image.shape)


def cutout_size(side: int, share: float = 0.5) -> int:
    """Return the side of the box that is cut out: a share of the image's, rounded half up."""
    return int(share * side + 0.5)


def cutout(image: Image, centre: Int[Array, "2"], share: float = 0.5) -> Image:
    """Set a box to zero, whose indices are clamped to the image: a box that hangs over takes the border along and shrinks.

    Its sides are a share of the image's: a half, or for the operation "hole" a quarter (FRePo). Along an axis the box of size s goes from
    centre - s // 2 to centre - s // 2 + s - 1; centres are in [0, side] where s is even, otherwise in [0, side - 1].
    """

    def inside(side: int, middle: Int[Array, ""]) -> Array:
        size = cutout_size(side, share)
        first = middle - size // 2
        first, last = (jnp.clip(index, 0, side - 1) for index in (first, first + size - 1))
        position = jnp.arange(side)
        return (first <= position) & (position <= last)

    height, width, _ = image.shape
    box = inside(height, centre[0])[:, None] & inside(width, centre[1])[None]
    return jnp.where(box[..., None], jnp.zeros_like(image), image)


def flip(image: Image, coin: Float[Array, ""]) -> Image:
    """Mirror left and right where a draw in [0, 1) is below 1/2."""
    return jnp.where(coin < 0.5, image[:, ::-1], image)


def warp(image: Image, theta: Float[Array, "2 2"], align_corners: bool, shift: Float[Array, "2"] | None = None) -> Image:
    """Sample the image at theta (x, y), bilinearly and with zeros outside, and `shift` pixels (rows, columns) on; theta = I moves nothing.

    (x, y) in [-1, 1]^2 are the output's pixels, x along the width. The ends are the outer edges of the border pixels, pixel i of W being
    (2i + 1) / W - 1, or with `align_corners` their centres, 2i / (W - 1) - 1.
    """
    height, width, _ = image.shape

    def ends(side: int) -> tuple[float, float]:
        # Where -1 and the middle between the ends lie, in pixels.
        half = (side - 1) / 2 if align_corners else side / 2
        return half, (side - 1) / 2

    (half_y, mid_y), (half_x, mid_x) = ends(height), ends(width)
    # An image of one pixel has its centre at 0.
    y = ((jnp.arange(height, dtype=image.dtype) - mid_y) / (half_y or 1.0))[:, None]
    x = ((jnp.arange(width, dtype=image.dtype) - mid_x) / (half_x or 1.0))[None]
    column = (theta[0, 0] * x + theta[0, 1] * y) * half_x + mid_x
    row = (theta[1, 0] * x + theta[1, 1] * y) * half_y + mid_y
    if shift is not None:
        row, column = row + shift[0], column + shift[1]
    top, left = jnp.floor(row), jnp.floor(column)

    def tap(down: int, right: int) -> Array:
        i, j = (top + down).astype(jnp.int32), (left + right).astype(jnp.int32)
        weight = (1 - jnp.abs(row - (top + down))) * (1 - jnp.abs(column - (left + right)))
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        pixels = image[jnp.clip(i, 0, height - 1), jnp.clip(j, 0, width - 1)]
        return jnp.where(inside[..., None], weight[..., None] * pixels, jnp.zeros_like(pixels))

    return tap(0, 0) + tap(0, 1) + tap(1, 0) + tap(1, 1)


def zoom(image: Image, factor: Float[Array, ""], align_corners: bool) -> Image:
    """Stretch the grid by one factor for both axes, between 1 / 1.25 and 1.25, as likely above 1 as below (FRePo)."""
    return warp(image, factor * jnp.eye(2, dtype=image.dtype), align_corners)


def translate(image: Image, shares: Float[Array, "2"], align_corners: bool) -> Image:
    """Move the window by shares (rows, columns) of the sides, up to an eighth; unlike `crop` by parts of a pixel, too (FRePo)."""
    sides = jnp.array(image.shape[:2], image.dtype)
    return warp(image, jnp.eye(2, dtype=image.dtype), align_corners, shares * sides)


def scale(image: Image, factors: Float[Array, "2"], align_corners: bool) -> Image:
    """Stretch the grid by (x, y) factors: above 1 it reaches beyond the image, which zooms out."""
    return warp(image, jnp.diag(factors), align_corners)


def rotate(image: Image, degrees: Float[Array, ""], align_corners: bool) -> Image:
    """Rotate by an angle, sampling at [[cos, -sin], [sin, cos]] (x, y)."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return warp(image, jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]), align_corners)


class Operation(NamedTuple):
    """One operation on one image.

    Attributes:
        draw: (key, image shape (H, W, C)) -> its parameters.
        apply: (image, parameters, align_corners) -> image of the same shape.
    """

    draw: Callable[[PRNGKeyArray, Shape], Array]
    apply: Callable[[Image, Array, bool], Image]


def _uniform(count: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Callable[[PRNGKeyArray, Shape], Array]:
    # float32 whatever the default is: the draws are the same in a program of 64-bit numbers.
    return lambda key, shape: jax.random.uniform(key, count, jnp.float32, low, high)


def _log_uniform(count: tuple[int, ...], most: float) -> Callable[[PRNGKeyArray, Shape], Array]:
    draw = _uniform(count, -most, most)
    return lambda key, shape: jnp.exp(draw(key, shape))


def _shift(key: PRNGKeyArray, shape: Shape) -> Array:
    radius = jnp.array([crop_radius(side) for side in shape[:2]])
    return jax.random.randint(key, (2,), -radius, radius + 1)


def _centre(share: float = 0.5) -> Callable[[PRNGKeyArray, Shape], Array]:
    def draw(key: PRNGKeyArray, shape: Shape) -> Array:
        end = jnp.array([side + 1 - cutout_size(side, share) % 2 for side in shape[:2]])
        return jax.random.randint(key, (2,), 0, end)

    return draw


_BY_NAME = {
    "color": Operation(_uniform((3,)), lambda image, drawn, _: color(image, drawn)),
    "crop": Operation(_shift, lambda image, drawn, _: crop(image, drawn)),
    "cutout": Operation(_centre(), lambda image, drawn, _: cutout(image, drawn)),
    "flip": Operation(_uniform(()), lambda image, drawn, _: flip(image, drawn)),
    "scale": Operation(_uniform((2,), 1 / MAX_SCALE, MAX_SCALE), scale),
    "rotate": Operation(_uniform((), -MAX_DEGREES, MAX_DEGREES), rotate),
    "jitter": Operation(_log_uniform((3,), MAX_LOG_FACTOR), lambda image, drawn, _: jitter(image, drawn)),
    "zoom": Operation(_log_uniform((), math.log(MAX_ZOOM)), zoom),
    "translate": Operation(_uniform((2,), -MAX_TRANSLATION, MAX_TRANSLATION), translate),
    "hole": Operation(_centre(HOLE), lambda image, drawn, _: cutout(image, drawn, HOLE)),
}


def parse_strategy(strategy: str) -> tuple[Operation, ...]:
    """Return the operations of a strategy, their names joined by underscores.

    Raises:
        ValueError: a name is not among `ssdd_jax.settings.augment.OPERATIONS`.
    """
    names = strategy.split("_")
    for name in names:
        if name not in _BY_NAME:
            raise ValueError(f"strategy {strategy!r} has the operation {name!r}, expected some of {', '.join(OPERATIONS)} joined by _")
    return tuple(_BY_NAME[name] for name in names)


def diff_augment(
    key: PRNGKeyArray, images: Float[Array, "n H W C"], strategy: str, *, siamese: bool, align_corners: bool = False
) -> Float[Array, "n H W C"]:
    """Change normalized images by one operation, each as likely as the others; differentiable with respect to the images.

    Args:
        key: equal keys draw equal operations and, in Siamese mode, equal parameters for batches of any size.
        images: "n H W C", normalized.
        strategy: names of operations joined by underscores, such as `ssdd_jax.settings.augment.WITH_FLIP`; '' changes nothing.
        siamese: whether all images share the parameters of the operation; otherwise each has its own.
        align_corners: what the ends of the grid of `warp` are.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: an operation is unknown.
    """
    if not strategy:
        return images
    operations, shape = parse_strategy(strategy), images.shape[1:]
    operation_key, draw_key = jax.random.split(key)

    def branch(operation: Operation) -> Callable[[Array], Array]:
        apply = lambda image, drawn: operation.apply(image, drawn, align_corners)
        if siamese:
            return lambda images: jax.vmap(apply, (0, None))(images, operation.draw(draw_key, shape))
        draw = jax.vmap(lambda key: operation.draw(key, shape))
        return lambda images: jax.vmap(apply)(images, draw(jax.random.split(draw_key, len(images))))

    return jax.lax.switch(jax.random.randint(operation_key, (), 0, len(operations)), list(map(branch, operations)), images)
