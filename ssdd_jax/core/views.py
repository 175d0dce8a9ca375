"""Predefined augmentations: deterministic, differentiable maps of an image batch, each a *view*. No key anywhere."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "n H W C"]


def _shift(images: Images, dy: int, dx: int) -> Images:
    """Translate by (dy, dx) pixels, filling with zeros (the mean colour of normalized images)."""
    h, w = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (abs(dy), abs(dy)), (abs(dx), abs(dx)), (0, 0)))
    return padded[:, abs(dy) - dy : abs(dy) - dy + h, abs(dx) - dx : abs(dx) - dx + w]


def _zoom(images: Images, top: int, left: int) -> Images:
    """Enlarge one quadrant to the full size, bilinearly with half-pixel centres."""
    n, h, w, c = images.shape
    quadrant = images[:, top * (h - h // 2) :, left * (w - w // 2) :][:, : h // 2, : w // 2]
    return jax.image.resize(quadrant, (n, h, w, c), "linear")


class View(NamedTuple):
    """A view: its function, and what it does in words for whoever reads an export."""

    fn: Callable[[Images], Images]
    meaning: str

    def __call__(self, images: Images) -> Images:
        """Return the images under this view."""
        return self.fn(images)


VIEWS = {
    "identity": View(lambda images: images, "the image itself"),
    "rot90": View(lambda images: jnp.rot90(images, 1, (1, 2)), "a quarter turn counter-clockwise, numpy.rot90(image, 1)"),
    "rot180": View(lambda images: jnp.rot90(images, 2, (1, 2)), "a half turn, numpy.rot90(image, 2)"),
    "rot270": View(lambda images: jnp.rot90(images, 3, (1, 2)), "a quarter turn clockwise, numpy.rot90(image, 3)"),
    "hflip": View(lambda images: images[:, :, ::-1], "mirrored left to right"),
    "vflip": View(lambda images: images[:, ::-1], "mirrored top to bottom"),
    "zoom_tl": View(partial(_zoom, top=0, left=0), "the top left quadrant, enlarged bilinearly to the full size"),
    "zoom_tr": View(partial(_zoom, top=0, left=1), "the top right quadrant, enlarged bilinearly to the full size"),
    "zoom_bl": View(partial(_zoom, top=1, left=0), "the bottom left quadrant, enlarged bilinearly to the full size"),
    "zoom_br": View(partial(_zoom, top=1, left=1), "the bottom right quadrant, enlarged bilinearly to the full size"),
    "shift_up": View(partial(_shift, dy=-2, dx=0), "moved up by 2 pixels; normalised zeros (the mean colour) come in"),
    "shift_down": View(partial(_shift, dy=2, dx=0), "moved down by 2 pixels; normalised zeros (the mean colour) come in"),
    "shift_left": View(partial(_shift, dy=0, dx=-2), "moved left by 2 pixels; normalised zeros (the mean colour) come in"),
    "shift_right": View(partial(_shift, dy=0, dx=2), "moved right by 2 pixels; normalised zeros (the mean colour) come in"),
    "dim": View(lambda images: 0.7 * images, "normalised values times 0.7"),
    "bright": View(lambda images: 1.3 * images, "normalised values times 1.3"),
}
ROTATIONS = ("identity", "rot90", "rot180", "rot270")
QUADRANTS = ("zoom_tl", "zoom_bl", "zoom_tr", "zoom_br")
"""The four images of a mosaic, in IDM's order."""


def check_views(views: Sequence[str], image_shape: Sequence[int]) -> None:
    """Raise a ValueError unless `views` are one or more distinct known names that fit `image_shape` (H, W, C)."""
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise ValueError(f"views: unknown view {unknown[0]!r}, expected names among {', '.join(VIEWS)}")
    if not views or len(set(views)) != len(views):
        raise ValueError(f"views: got {tuple(views)}, expected one or more distinct names")
    quarter_turns = {"rot90", "rot270"} & set(views)
    if quarter_turns and image_shape[0] != image_shape[1]:
        raise ValueError(f"views: {sorted(quarter_turns)[0]} of {tuple(image_shape)} images, expected square images; pad or resize them")
    zooms = sorted(name for name in views if name.startswith("zoom"))
    if zooms and min(image_shape[:2]) < 2:
        raise ValueError(f"views: {zooms[0]} of {tuple(image_shape)} images, expected sides of 2 or more pixels; leave it out")


def apply_views(images: Images, views: Sequence[str]) -> Float[Array, "A n H W C"]:
    """Stack the named views of every image along a new first axis.

    Args:
        images: "n H W C".
        views: names among `VIEWS`.

    Raises:
        ValueError: a name is unknown or repeated, there is none, images are not square but a quarter turn is asked for, or an image is too
            small for a zoom.

    Example:
        >>> apply_views(jnp.zeros((5, 8, 8, 1)), ("identity", "rot90")).shape
        (2, 5, 8, 8, 1)
    """
    check_views(views, images.shape[1:])
    return jnp.stack([VIEWS[name](images) for name in views])
