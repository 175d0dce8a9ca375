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


# Whole tiles, tiles of which one, two or three rows are used, and less than a tile.
@pytest.mark.parametrize(("height", "width"), [(8, 4), (9, 6), (7, 8), (3, 3)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_tiles_make_up_the_convolution(height, width, padding):
    images, kernel = draw(3, height, width, 5), draw(3, 3, 5, 6, seed=1)
    expected = by_definition(images, kernel, padding)
    found = convolve_by_tiles(jnp.asarray(images), jnp.asarray(kernel), padding)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_the_rounding_error_is_a_few_times_that_of_a_plain_convolution():
    images, kernel = draw(8, 8, 8, 256), draw(3, 3, 256, 64, seed=1) / 48
    padding = PADDINGS[0]
    exact = by_definition(images, kernel, padding)
    layout = ("NHWC", "HWIO", "NHWC")
    plain = jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=layout, precision="highest")
    error = lambda outputs: float(np.sqrt(np.mean((np.asarray(outputs) - exact) ** 2)) / exact.std())
    assert error(convolve_by_tiles(jnp.asarray(images), jnp.asarray(kernel), padding)) < min(2e-6, 10 * error(plain))


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
        outputs, pull_back = jax.vjp(lambda x, k: convolve(x, k, (1, 1), PADDINGS[0]), images, kernel)
        return outputs, *pull_back(cotangent)

    # All images in one part, three of them (the last part is filled up), and one, which is the least.
    one = 4 * 36 * tiles_per_image((8, 8, 50)) * 50
    whole, *others = (gradients(count) for count in (7 * one, 3 * one, 1))
    for parts in others:
        for mine, expected in zip(parts, whole, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-3)
