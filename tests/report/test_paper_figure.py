"""The paper's figure: bases, synthetic images, their views and the nearest real images."""

import numpy as np
import pytest

from experiments.paper.figure import COLUMNS, MOST, NEAREST, ROWS, SIDE, WIDTH, set_figure
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.report import nearest

MIN_LEGIBLE_SIDE = 0.4
"""Inches."""


def test_it_shows_a_set_with_its_bases_and_what_is_nearest(workdir):
    folder = workdir / "distilled" / "ours" / "seed_0"
    distilled = load_distilled(folder)
    figure = set_figure(folder)
    num_images, views = distilled.images.coefficients.shape[0], distilled.layout.views
    assert [text.get_text()[:3] for text in figure.texts] == ["(a)", "(b)", "(c)"]
    rows = min(ROWS, num_images)
    assert len(figure.axes) == len(distilled.images.bases) + min(MOST, num_images) + rows * (len(views) + NEAREST)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [*views, "real 1", "real 2", "real 3"]
    assert figure.get_figwidth() == WIDTH >= COLUMNS * SIDE
    assert SIDE >= MIN_LEGIBLE_SIDE
    for axes in figure.axes:
        place = axes.get_position()
        assert 0 <= place.x0 < place.x1 <= 1
        assert 0 <= place.y0 < place.y1 <= 1
    real = [axes.images[0].get_array() for axes in figure.axes][-1]
    np.testing.assert_array_equal(real, nearest.read_nearest(workdir)["ours"].images[rows - 1, NEAREST - 1, ..., 0])


@pytest.mark.parametrize("method", ["ours", "krr_st"])
def test_real_images_that_are_not_this_sets_are_left_out(workdir, method):
    (workdir / nearest.FILE).unlink()
    figure = set_figure(workdir / "distilled" / method / "seed_0")
    assert not any("real" in axes.get_title() for axes in figure.axes)
    # Without bases, views and neighbours there is one panel.
    assert len(figure.texts) == (3 if method == "ours" else 1)
