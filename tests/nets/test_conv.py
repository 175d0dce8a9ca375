import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.nets import conv
from ssdd_jax.nets.conv import IMAGES_AT_ONCE, convolve, convolve_depthwise

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(conv, "MIN_OPERATIONS", 0)


LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain(images, kernel, strides, padding):
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=LAYOUT)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def value_and_gradients(fn, images, kernel):
    outputs, pullback = jax.vjp(fn, images, kernel)
    return outputs, *pullback(draw(*outputs.shape, seed=2))


CASES = {
    "few channels": (3, 3, (1, 1), ((1, 1), (1, 1))),
    "few channels, many outputs": (3, 2, (1, 1), ((1, 1), (1, 1))),
    "few channels, uneven padding and strides": (3, 3, (2, 3), ((2, 1), (0, 3))),
    "few channels, no padding": (5, 1, (1, 1), ((0, 0), (0, 0))),
    "many channels": (3, 16, (1, 1), ((1, 1), (1, 1))),
    "stride 2": (3, 16, (2, 2), ((1, 1), (1, 1))),
    "stride 2, few channels": (3, 3, (2, 2), ((1, 1), (1, 1))),
    "1 x 1, stride 2": (1, 32, (2, 2), ((0, 0), (0, 0))),
    "5 x 5": (5, 16, (1, 1), ((2, 2), (2, 2))),
    "padding 2 of 3 x 3": (3, 16, (1, 1), ((2, 2), (2, 2))),
    "uneven padding and strides": (3, 16, (2, 1), ((2, 1), (0, 3))),
    "in tiles": (3, 48, (1, 1), ((1, 1), (1, 1))),
    "in tiles, uneven padding": (3, 48, (1, 1), ((0, 2), (1, 0))),
    "in tiles, its kernel's gradient, too": (3, 96, (1, 1), ((1, 1), (1, 1))),
    "padding beyond the kernel": (3, 48, (1, 1), ((0, 2), (3, 0))),
    "no padding": (3, 16, (1, 1), ((0, 0), (0, 0))),
    "1 x 1": (1, 16, (1, 1), ((0, 0), (0, 0))),
    "1 x 1, padded": (1, 16, (1, 1), ((1, 0), (0, 1))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, IMAGES_AT_ONCE, IMAGES_AT_ONCE + 3])
def test_values_and_gradients_are_those_of_lax(case, count):
    size, channels, strides, padding = CASES[case]
    images, kernel = draw(count, 9, 7, channels), draw(size, size, channels, {96: 96, 48: 48, 2: 17}.get(channels, 5), seed=1)
    ours = lambda images, kernel: convolve(images, kernel, strides, padding, dimension_numbers=LAYOUT, precision=None)
    expected = lambda images, kernel: plain(images, kernel, strides, padding)
    for mine, theirs in zip(
        jax.jit(value_and_gradients, static_argnums=0)(ours, images, kernel),
        jax.jit(value_and_gradients, static_argnums=0)(expected, images, kernel),
        strict=True,
    ):
        # Errors of tiles are relative to the largest of many sums.
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3 if channels == 96 else 1e-4)


DEPTHWISE = {
    "stride 1": ((1, 1), ((1, 1), (1, 1))),
    "stride 2": ((2, 2), ((1, 1), (1, 1))),
    "uneven": ((2, 1), ((0, 2), (1, 0))),
    "padding beyond the kernel": ((1, 1), ((1, 3), (0, 1))),
}


@pytest.mark.parametrize("case", DEPTHWISE)
@pytest.mark.parametrize("count", [1, IMAGES_AT_ONCE, IMAGES_AT_ONCE + 3])
def test_depthwise_values_and_gradients_are_those_of_lax(case, count):
    strides, padding = DEPTHWISE[case]
    images, kernel = draw(count, 9, 7, 5), draw(3, 3, 1, 5, seed=1)
    ours = lambda images, kernel: convolve_depthwise(images, kernel, strides, padding)
    expected = lambda images, kernel: jax.lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=5
    )
    both = [jax.jit(value_and_gradients, static_argnums=0)(fn, images, kernel) for fn in (ours, expected)]
    for mine, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 16])
def test_it_maps_over_kernels_and_differentiates_twice(channels):
    padding = ((1, 1), (1, 1))
    images, kernels = draw(2, 3, 6, 6, channels), draw(2, 3, 3, channels, 4, seed=1)

    def gradients(fn):
        loss = lambda x, k: jnp.sum(jnp.tanh(fn(x, k, (1, 1), padding)) ** 2)
        penalty = lambda x, k: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, k))
        return jax.jit(jax.vmap(jax.grad(penalty, (0, 1))))(images, kernels)

    for mine, theirs in zip(gradients(convolve), gradients(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_the_gradient_keeps_the_precision_that_the_value_was_asked_for():
    images, kernel = draw(2, 6, 6, 16), draw(3, 3, 16, 4, seed=1)

    def loss(kernel):
        with jax.default_matmul_precision("float32"):
            return jnp.sum(convolve(images, kernel, (1, 1), ((1, 1), (1, 1))) ** 2)

    # As it is lowered for a GPU, where products have a precision; every convolution of value and gradient has the one asked for.
    text = jax.jit(jax.grad(loss)).trace(kernel).lower(lowering_platforms=("cuda",)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 2
    assert all("precision HIGHEST" in line for line in convolutions)


def test_what_is_small_is_a_plain_convolution(monkeypatch):
    images, kernel = draw(2, 6, 6, 16), draw(3, 3, 16, 4, seed=1)
    gradients = lambda: jax.jit(jax.grad(lambda x, k: jnp.sum(convolve(x, k, (1, 1), ((1, 1), (1, 1))) ** 2), (0, 1)))
    # 2 x 6 x 6 x 4 outputs of 3 x 3 x 16 products and sums each.
    for least, is_plain in ((2 * 288 * 144, False), (2 * 288 * 144 + 1, True)):
        monkeypatch.setattr(conv, "MIN_OPERATIONS", least)
        text = gradients().lower(images, kernel).as_text()
        assert ("dot_general" not in text) == is_plain
