"""The pictures of the page: distilled images with their views and the real images next to them, and bases."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from PIL import Image

from ssdd_jax.core.distilled import num_images, reconstruct_images
from ssdd_jax.core.views import apply_views
from ssdd_jax.io.export import to_uint8
from ssdd_jax.report import figures
from ssdd_jax.report.nearest import COUNT, Nearest
from ssdd_jax.report.run import DrawnSet

MIN_IMAGES = 6
# Numbers of all pictures of a set on the page, and of all sets: they are most of its size.
SET_NUMBERS, PAGE_NUMBERS = 900_000, 12_000_000


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        src: data URI.
        alt: what it shows.
        caption: short text below it.
    """

    src: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Item:
    """An image that opens.

    Attributes:
        title: heading of what opens.
        picture: what is seen before.
        groups: what else opens with it, by heading.
    """

    title: str
    picture: Picture
    groups: dict[str, list[Picture]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """The pictures of one set.

    Attributes:
        run: label of the run.
        method: name of the set.
        title: heading.
        images: the distilled images.
        images_caption: which of them.
        bases: the bases of the images, if they have any.
        bases_caption: which of them.
    """

    run: str
    method: str
    title: str
    images: list[Item]
    images_caption: str
    bases: list[Item]
    bases_caption: str


def images_shown(count: int, image_shape: Sequence[int], num_views: int, num_sets: int = 1) -> int:
    """Return how many images of a set the page has, each with all its views and nearest real images.

    Example:
        >>> images_shown(100, (28, 28, 1), 4), images_shown(100, (64, 64, 3), 4)
        (100, 8)
    """
    numbers = min(SET_NUMBERS, PAGE_NUMBERS // num_sets)
    return min(count, figures.MAX_IMAGES, max(MIN_IMAGES, numbers // (prod(image_shape) * (num_views + COUNT))))


def make_gallery(run: str, method: str, drawn: DrawnSet, nearest: Nearest | None, title: str, num_sets: int) -> Gallery:
    """Make the pictures of a set.

    Args:
        run: label of the run.
        method: name of the set.
        drawn: the set.
        nearest: the real images next to its first images, if the run has written them.
        title: heading.
        num_sets: sets of the page.
    """
    distilled, layout = drawn.distilled, drawn.distilled.layout
    total, views = num_images(distilled), layout.views
    count = images_shown(total, layout.image_shape, len(views), num_sets)
    normalized = reconstruct_images(distilled)[:count]
    # "A n H W C"; alone the identity is not worth a program of its own.
    pixels = to_uint8(np.asarray(apply_views(normalized, views) if len(views) > 1 else normalized[None]), drawn.mean, drawn.std)
    items = []
    for i in range(count):
        groups = {}
        if len(views) > 1:
            names = [f"{view}, {kind}" for view, kind in zip(views, layout.view_targets, strict=True)]
            groups["Views, and where their targets come from"] = [
                Picture(_uri(pixels[a, i]), f"{method}, image {i + 1} under the view {views[a]}", names[a]) for a in range(len(views))
            ]
        if nearest is not None and i < len(nearest.images):
            groups["Nearest real images in the teacher's representation"] = [
                Picture(_uri(image), f"training image {row:,}, {place + 1} among the nearest", f"no. {row:,}, distance {distance:.2f}")
                for place, (image, row, distance) in enumerate(zip(nearest.images[i], nearest.rows[i], nearest.distances[i], strict=True))
            ]
        picture = Picture(_uri(pixels[0, i]), f"{method}, distilled image {i + 1} of {total}", str(i + 1))
        items.append(Item(f"{title}: image {i + 1} of {total}", picture, groups))
    rows = distilled.images.bases
    bases, num_bases = ([], 0) if rows is None else (figures.bases_pixels(rows, layout.base_shape), len(rows))
    base = lambda i, b: Item(f"{title}: basis {i + 1}", Picture(_uri(b), f"{method}, image basis {i + 1} of {num_bases}", str(i + 1)))
    return Gallery(
        run,
        method,
        title,
        items,
        figures.all_or_first(total, count, "distilled images"),
        [base(i, b) for i, b in enumerate(bases)],
        f"{figures.all_or_first(num_bases, figures.MAX_BASES, 'image bases')}, each stretched to its own range; mid-grey is 0",
    )


def _uri(pixels: np.ndarray) -> str:
    """Return uint8 "H W C" as a data URI."""
    content = figures.png(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
