"""The pictures of a run: bases, distilled images and their views with pillow, loss curves with matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from ssdd_jax.core.distilled import DistilledSet, reconstruct_images
from ssdd_jax.core.views import apply_views
from ssdd_jax.io.export import to_uint8

MIN_SIDE = 48
MAX_BASES, MAX_IMAGES, MAX_ROWS = 64, 100, 6
MID_GREY = 128
# How many channels a picture has.
DRAWABLE = (1, 3)
FONT_SIZE = 13
# Okabe and Ito's palette without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")


def grid(images: np.ndarray, columns: int, scale: int | None = None, gap: int = 4) -> Image.Image:
    """Lay images out row by row on white.

    Image i has its corner at x = gap + (i % columns) (scale W + gap), y = gap + (i // columns) (scale H + gap).

    Args:
        images: uint8 "n H W C" with C = 1 (grey) or 3 (colour).
        columns: number of images per row.
        scale: every pixel becomes a square of this side; None takes the smallest that gives sides of at least 48 pixels.
        gap: pixels between images and around them.

    Raises:
        ValueError: there are no images, or they are not uint8, or neither grey nor RGB.

    Example:
        >>> grid(np.zeros((5, 8, 8, 1), np.uint8), columns=3, scale=2, gap=1).size
        (52, 35)
    """
    if images.ndim != 4 or not len(images) or images.dtype != np.uint8 or images.shape[3] not in DRAWABLE:
        raise ValueError(f"grid: images are {images.dtype} {images.shape}, expected uint8 (n, H, W, C) with n > 0 and C 1 or 3")
    n, h, w, channels = images.shape
    scale = scale or _scale(h, w)
    images = images.repeat(scale, 1).repeat(scale, 2)
    pitch_y, pitch_x = scale * h + gap, scale * w + gap
    canvas = np.full((gap + math.ceil(n / columns) * pitch_y, gap + columns * pitch_x, channels), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * pitch_y, gap + i % columns * pitch_x
        canvas[y : y + scale * h, x : x + scale * w] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def bases_picture(bases: ArrayLike, base_shape: Sequence[int]) -> Image.Image:
    """Draw the first image bases "U p", each stretched to its own range, symmetric about 0, which is mid-grey."""
    pixels = bases_pixels(bases, base_shape)
    return grid(pixels, min(16, len(pixels)))


def bases_pixels(bases: ArrayLike, base_shape: Sequence[int]) -> np.ndarray:
    """Return the first image bases as uint8 "n h w C", as `bases_picture` draws them."""
    bases = np.asarray(bases)[:MAX_BASES].reshape(-1, *base_shape)
    largest = np.maximum(np.abs(bases).max((1, 2, 3), keepdims=True), np.finfo(np.float32).tiny)
    return (MID_GREY + np.rint(127 * (bases / largest))).astype(np.uint8)


def images_picture(distilled: DistilledSet, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Draw the distilled images under view 0."""
    pixels = to_uint8(np.asarray(reconstruct_images(distilled)[:MAX_IMAGES]), mean, std)
    return grid(pixels, min(10, len(pixels)))


def views_picture(distilled: DistilledSet, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Draw the first images, one per row, under every view, one per column with its name above."""
    views, gap = distilled.layout.views, 6
    pixels = to_uint8(np.asarray(apply_views(reconstruct_images(distilled)[:MAX_ROWS], views)), mean, std)
    _, _, h, w, channels = pixels.shape
    font = ImageFont.load_default(FONT_SIZE)
    scale = max(_scale(h, w), math.ceil(max(font.getlength(name) for name in views) / w))
    body = grid(pixels.swapaxes(0, 1).reshape(-1, h, w, channels), len(views), scale, gap)
    header = FONT_SIZE + gap
    picture = Image.new(body.mode, (body.width, body.height + header), "white")
    picture.paste(body, (0, header))
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(views):
        middle = gap + column * (scale * w + gap) + scale * w / 2
        draw.text((middle, gap + FONT_SIZE), name, fill="black", font=font, anchor="ms")
    return picture


def png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "png", optimize=True)
    return content.getvalue()


def loss_picture(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Draw the outer loss of every method against the step, and return the bytes of a PNG file.

    Args:
        curves: for every method the steps "t" and the losses "t S" of its S seeds, positive.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot(yscale="log", xlabel="outer step", ylabel="outer loss (each method's own, log scale)")
        one_seed = all(losses.shape[1] == 1 for _, losses in curves.values())
        # The legend is sorted by the curves' right ends, so that it reads from top to bottom.
        order = sorted(curves, key=lambda method: -curves[method][1][-1].mean())
        styles = {method: (COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]) for i, method in enumerate(curves)}
        for method in order:
            (steps, losses), (colour, line) = curves[method], styles[method]
            marker = "o" if len(steps) < 3 else None
            axes.plot(steps, losses.mean(1), line, color=colour, linewidth=1.8, marker=marker, label=method)
            if losses.shape[1] > 1:
                axes.fill_between(steps, losses.min(1), losses.max(1), color=colour, alpha=0.2, linewidth=0)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        title = "one seed" if one_seed else "mean over seeds,\nband: smallest to largest"
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=title, title_fontsize=9, alignment="left")
        for text in legend.get_texts():
            text.set_color(styles[text.get_text()][0])
        content = io.BytesIO()
        figure.savefig(content, format="png")
    return content.getvalue()


def all_or_first(count: int, most: int, what: str) -> str:
    """Return what a picture shows where it shows at most a number of things.

    Example:
        >>> all_or_first(130, 100, "distilled images")
        'The first 100 of 130 distilled images'
    """
    return f"The {what}" if count <= most else f"The first {most} of {count:,} {what}"


def _scale(h: int, w: int) -> int:
    return math.ceil(MIN_SIDE / min(h, w))
