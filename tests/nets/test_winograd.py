import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.nets import conv
from ssdd_jax.nets.conv import convolve
from ssdd_jax.nets.winograd import convolve_by_tiles, tiles_per_image

pytestmark = pytest.mark.core

PADDINGS = [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (0, 3))]


def draw(*shape, seed=0):
    return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def by_definition(images, kernel, padding):
    """Return the convolution in float64."""
    padded = np.pad(images.astype(np.float64), ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    taps = ((i, j) for i in range(3) for j in range(3))
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64) for i, j in taps)


tiled = jax.jit(convolve_by_tiles, static_argnums=2)


# Whole tiles, tiles of which one, two or three rows are used, and less than a tile.
@pytest.mark.parametrize(("height", "width"), [(8, 4), (9, 6), (7, 8), (3, 3)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_tiles_make_up_the_convolution(height, width, padding):
    images, kernel = draw(3, height, width, 5), draw(3, 3, 5, 6, seed=1)
    expected = by_definition(images, kernel, padding)
    found = tiled(images, kernel, padding)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_rounding_errors_are_a_few_times_those_of_plain_products():
    images, kernel, cotangent = draw(32, 8, 8, 64), draw(3, 3, 64, 64, seed=1) / 24, draw(32, 8, 8, 64, seed=2)
    images, padding = np.maximum(images, 0), PADDINGS[0]
    padded = np.pad(images.astype(np.float64), ((0, 0), *padding, (0, 0)))
    windows = [padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i in range(3) for j in range(3)]
    exact = (
        by_definition(images, kernel, padding),
        by_definition(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), padding),
        np.reshape([window.T @ cotangent.reshape(-1, 64).astype(np.float64) for window in windows], kernel.shape),
    )

    def plain(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=layout, precision="highest")

    def errors(fn):
        def all_three(images, kernel, cotangent):
            outputs, pull_back = jax.vjp(fn, images, kernel)
            return outputs, *pull_back(cotangent)

        found = jax.jit(all_three)(images, kernel, cotangent)
        return [np.sqrt(np.mean((array - right) ** 2)) / right.std() for array, right in zip(found, exact, strict=True)]

    of_tiles = errors(lambda images, kernel: convolve_by_tiles(images, kernel, padding))
    # As `ssdd_jax.nets.winograd` says: 2 to 6 times, and for the kernel's gradient 3 to 7.
    for found, expected, most in zip(of_tiles, errors(plain), (6, 6, 7), strict=True):
        assert found < min(2e-6, most * expected)


def test_a_large_input_disturbs_its_own_tile_alone():
    images, kernel = np.zeros((1, 8, 8, 48), np.float32), draw(3, 3, 48, 48, seed=1)
    images[0, 1, 1, 0] = 1e4
    errors = np.abs(tiled(images, kernel, PADDINGS[0]) - by_definition(images, kernel, PADDINGS[0]))
    errors = errors[0].max(-1)
    # The first tile has outputs 0 to 3 along each axis; those from 3 on do not depend on the input.
    assert errors[3, :4].max() < 2e-6 * 1e4 * kernel.std()
    assert errors[4:].max() == errors[:, 4:].max() == 0


@pytest.mark.parametrize(("precision", "tiled"), [("tensorfloat32", True), (None, True), ("float32", False), ("highest", False)])
def test_a_precision_of_float32_rules_tiles_out(precision, tiled, monkeypatch):
    monkeypatch.setattr(conv, "MIN_OPERATIONS", 0)
    images, kernel = draw(2, 8, 8, 48), draw(3, 3, 48, 48, seed=1)
    with jax.default_matmul_precision(precision):
        program = jax.jit(lambda x, k: convolve(x, k, (1, 1), PADDINGS[0])).trace(images, kernel)
    # A product of 48 channels with each of the 36 transformed taps.
    assert ("36x48x48" in program.lower(lowering_platforms=("cpu",)).as_text()) == tiled


def test_parts_of_tiles_are_the_whole(monkeypatch):
    monkeypatch.setattr(conv, "MIN_OPERATIONS", 0)
    images, kernel, cotangent = map(jnp.asarray, (draw(7, 8, 8, 48), draw(3, 3, 48, 50, seed=1), draw(7, 8, 8, 50, seed=2)))

    def gradients(bytes_at_once):
        monkeypatch.setattr(conv, "TILED_BYTES", bytes_at_once)

        def all_three(images, kernel):
            outputs, pull_back = jax.vjp(lambda x, k: convolve(x, k, (1, 1), PADDINGS[0]), images, kernel)
            return outputs, *pull_back(cotangent)

        return jax.jit(all_three)(images, kernel)

    # All images in one part, three of them (the last part is filled up), and one, which is the least.
    one = 4 * 36 * tiles_per_image((8, 8, 50)) * 50
    whole, *others = (gradients(count) for count in (7 * one, 3 * one, 1))
    for parts in others:
        for mine, expected in zip(parts, whole, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-3)
