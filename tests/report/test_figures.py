"""Where the pixels of the pictures come from."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssdd_jax.core.distilled import reconstruct_images
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.io.export import to_uint8
from ssdd_jax.report import figures

MEAN, STD = [0.25], [0.5]


def pixels_of(picture):
    return np.asarray(picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_pixel(channels):
    # All pixels differ, and none is the white of the gaps.
    images = np.arange(5 * 2 * 3 * channels, dtype=np.uint8).reshape(5, 2, 3, channels)
    picture = figures.grid(images, columns=2, scale=4, gap=3)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    pixels = pixels_of(picture).reshape(3 + 3 * 11, 3 + 2 * 15, channels)
    expected = np.full_like(pixels, 255)
    for i, image in enumerate(images):
        for y in range(2):
            for x in range(3):
                top, left = 3 + (i // 2) * (2 * 4 + 3) + 4 * y, 3 + (i % 2) * (3 * 4 + 3) + 4 * x
                expected[top : top + 4, left : left + 4] = image[y, x]
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("side", "scale"), [(8, 6), (28, 2), (32, 2), (48, 1), (64, 1)])
def test_grid_enlarges_small_images(side, scale):
    assert figures.grid(np.zeros((1, side, side, 1), np.uint8), 1, gap=0).size == (side * scale, side * scale)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 8, 8, 2), np.uint8), ((2, 8, 8), np.uint8), ((0, 8, 8, 1), np.uint8), ((2, 8, 8, 1), float)]
)
def test_grid_refuses_what_it_cannot_show(shape, dtype):
    with pytest.raises(ValueError, match="grid: images are"):
        figures.grid(np.zeros(shape, dtype), 1)


def test_pixels_are_denormalized_rounded_and_clipped():
    images = np.array([-0.5, 0.0, 1.5, 9.0, -9.0, (100.4 / 255 - 0.25) / 0.5], np.float32).reshape(1, 2, 3, 1)
    assert to_uint8(images, MEAN, STD).ravel().tolist() == [0, 64, 255, 255, 0, 100]
    colour = to_uint8(np.zeros((1, 1, 1, 3)), [0.0, 0.2, 1.0], [1.0, 2.0, 3.0])
    assert colour.ravel().tolist() == [0, 51, 255]


def test_bases_are_stretched_each_to_its_own_range_with_zero_in_the_middle():
    bases = np.zeros((3, 16), np.float32)
    bases[0, :3] = 4.0, -4.0, 2.0
    bases[1, 5] = -1e-3
    pixels = pixels_of(figures.bases_picture(bases, (4, 4, 1)))
    # Sides of 4 pixels are enlarged 12 times, with gaps of 4.
    first, second, third = (pixels[4:52:12, left : left + 48 : 12] for left in (4, 56, 108))
    assert first[0].tolist() == [255, 1, 192, 128]
    assert second[1].tolist() == [128, 1, 128, 128]
    assert (first[1:] == 128).all()
    assert (third == 128).all()


def test_at_most_64_bases_and_100_images_are_drawn(make_set):
    bases = figures.bases_picture(np.ones((70, 2304), np.float32), (48, 48, 1))
    assert bases.size == (4 + 16 * 52, 4 + 4 * 52)
    plain = make_set("krr_st")
    many = plain.replace(images=Plain(jnp.zeros((130, 8, 8, 1))), reprs=Plain(jnp.zeros((1, 130, 6))))
    assert figures.images_picture(many, MEAN, STD).size == (4 + 10 * 52, 4 + 10 * 52)


def test_distilled_images_are_those_of_view_0_row_by_row(make_set):
    distilled = make_set("ours")
    expected = to_uint8(np.asarray(reconstruct_images(distilled)), MEAN, STD)
    picture = pixels_of(figures.images_picture(distilled, MEAN, STD))
    # Twelve images: ten in the first row, two in the second.
    np.testing.assert_array_equal(picture[4:52:6, 4 + 3 * 52 : 4 + 3 * 52 + 48 : 6], expected[3, ..., 0])
    np.testing.assert_array_equal(picture[56:104:6, 56:104:6], expected[11, ..., 0])
    assert (picture[56:104, 108:] == 255).all()


def test_views_have_a_row_an_image_and_a_column_a_view(make_set):
    distilled = make_set("ours")
    expected = to_uint8(np.asarray(reconstruct_images(distilled)), MEAN, STD)
    picture = pixels_of(figures.views_picture(distilled, MEAN, STD))
    scale = (picture.shape[1] - 4 * 6) // 3 // 8
    top, pitch = figures.FONT_SIZE + 12, 8 * scale + 6
    assert picture.shape == (top + 6 * pitch, 6 + 3 * pitch)
    cell = lambda row, column: picture[top + row * pitch :, 6 + column * pitch :][: 8 * scale : scale, : 8 * scale : scale]
    np.testing.assert_array_equal(cell(2, 0), expected[2, ..., 0])
    np.testing.assert_array_equal(cell(5, 1), np.rot90(expected[5, ..., 0]))
    # Every column has a name above it that stays above it.
    for column in range(3):
        name = picture[:top, 6 + column * pitch :][:, : 8 * scale]
        assert (name < 100).any()
    assert (picture[top - 2 : top] == 255).all()
    assert all((picture[:top, 6 + column * pitch - 6 :][:, :6] == 255).all() for column in range(4))


def test_loss_picture_shows_the_band_of_the_seeds():
    pytest.importorskip("matplotlib")
    steps = np.array([50, 100, 150])
    one = figures.loss_picture({"ours": (steps, np.array([[2.0, 3.0], [1.0, 2.0], [0.1, 0.2]]))})
    other = figures.loss_picture({"ours": (steps, np.array([[2.0, 2.0], [1.0, 1.0], [0.1, 0.1]]))})
    drawn = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int) for content in (one, other)]
    assert all(image.shape[0] > 400 and image.shape[1] > 800 for image in drawn)
    # The band is there: the first has pixels of its pale blue, the second none.
    pale = [((image[..., 2] > image[..., 0] + 30) & (image.min(-1) > 150)).sum() for image in drawn]
    assert pale[0] > 10 * pale[1] + 1000
