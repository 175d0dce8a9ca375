"""The paper's figure, fit for print: bases, synthetic images, and these under their views beside the nearest real images."""

from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.core.distilled import reconstruct_images
from ssdd_jax.core.views import apply_views
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.io.export import to_uint8
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.report.figures import all_or_first, bases_pixels
from ssdd_jax.report.nearest import Nearest, read_nearest

# Inches: a text column of most templates, and the side of a picture in it.
WIDTH, SIDE = 6.75, 0.42
COLUMNS, MOST, ROWS, NEAREST = 15, 45, 5, 3


def set_figure(folder: Path) -> Any:
    """Return the figure of a distilled set, a matplotlib Figure whose frame and words are drawn as lines.

    Args:
        folder: `distilled/METHOD/seed_0` of a run's workdir; the nearest real images are those that the run has written.
    """
    from matplotlib.figure import Figure

    distilled, manifest = load_distilled(folder), read_manifest(folder) or {}
    normalization, method = manifest["normalization"], folder.parent.name
    pixels = lambda images: to_uint8(np.asarray(images), normalization["mean"], normalization["std"])
    nearest = read_nearest(folder.parents[2]).get(method)
    images, panels = reconstruct_images(distilled), []
    if (of_images := distilled.images.bases) is not None:
        bases = bases_pixels(of_images, distilled.layout.base_shape)
        panels.append((all_or_first(len(of_images), MOST, "image bases"), _rows(bases[:MOST]), ()))
    panels.append((all_or_first(len(images), MOST, f"synthetic images of {method}"), _rows(pixels(images[:MOST])), ()))
    named = dict(zip(distilled.layout.views, pixels(apply_views(images[:ROWS], distilled.layout.views)), strict=True))
    named |= _nearest_columns(nearest, str(manifest.get("sha256", "")))
    if len(named) > 1:
        columns = list(named.values())
        shown = [[column[i] for column in columns if i < len(column)] for i in range(min(ROWS, len(images)))]
        panels.append((all_or_first(len(images), ROWS, "images under every view, and the nearest real ones"), shown, tuple(named)))
    # A line of text above every panel, and one for the names of columns.
    texts = sum(0.36 if names else 0.22 for _, _, names in panels)
    figure = Figure(figsize=(WIDTH, SIDE * sum(len(rows) for _, rows, _ in panels) + texts + 0.1), layout="none")
    top = figure.get_figheight()
    for (title, rows, names), letter in zip(panels, "abc", strict=False):
        top -= 0.17
        figure.text(0.01, (top + 0.03) / figure.get_figheight(), f"({letter}) {title}", fontsize=8, va="bottom")
        top -= 0.14 if names else 0.0
        for row in rows:
            top -= SIDE
            for column, image in enumerate(row):
                place = (
                    (0.06 + column * SIDE) / WIDTH,
                    top / figure.get_figheight(),
                    0.94 * SIDE / WIDTH,
                    0.94 * SIDE / figure.get_figheight(),
                )
                axes = figure.add_axes(place, xticks=[], yticks=[])
                axes.spines[:].set_linewidth(0.3)
                axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                if names and row is rows[0]:
                    axes.set_title(names[column], fontsize=6, pad=2)
        top -= 0.05
    return figure


def _rows(images: np.ndarray) -> list[list[np.ndarray]]:
    return [list(images[start : start + COLUMNS]) for start in range(0, len(images), COLUMNS)]


def _nearest_columns(nearest: Nearest | None, digest: str) -> dict[str, np.ndarray]:
    """Return the real images by how near they are, unless the run has not written those of this very set."""
    if nearest is None or nearest.digest != digest:
        return {}
    return {f"real {place + 1}": nearest.images[:, place] for place in range(min(NEAREST, nearest.images.shape[1]))}
