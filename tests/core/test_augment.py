import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.augment import augment as augment_fn
from ssdd_jax.core.augment import color_jitter, gaussian_blur, grayscale, random_resized_crop, random_shift, shift_hue
from ssdd_jax.core.views import VIEWS, apply_views
from ssdd_jax.settings.augment import AugmentSpec

pytestmark = pytest.mark.core

augment = jax.jit(augment_fn, static_argnums=2)

NOTHING = AugmentSpec(min_crop_scale=1.0, flip=0.0, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
EVERYTHING = AugmentSpec(blur=0.5, solarize=0.5)


@pytest.fixture
def images():
    return jnp.asarray(np.random.RandomState(0).uniform(size=(5, 8, 8, 3)), jnp.float32)


def test_a_key_moves_augment_and_the_same_key_repeats_it(images, key):
    first, again, other = (augment(k, images, EVERYTHING) for k in (key, key, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(apply_views(images, tuple(VIEWS)), apply_views(images, tuple(VIEWS)))


def test_every_image_gets_its_own_draw(images, key):
    same = jnp.broadcast_to(images[:1], images.shape)
    drawn = augment(key, same, EVERYTHING)
    assert len({np.asarray(image).tobytes() for image in drawn}) == len(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_in_the_unit_interval_and_keep_their_shape(images, channels):
    for seed in range(3):
        drawn = augment(jax.random.key(seed), images[..., :channels], EVERYTHING)
        assert drawn.shape == images[..., :channels].shape
        assert float(drawn.min()) >= -1e-5
        assert float(drawn.max()) <= 1 + 1e-5


def test_nothing_switched_on_is_the_identity(images, key):
    np.testing.assert_array_equal(augment(key, images, NOTHING), images)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("flip", lambda x: x[:, :, ::-1]),
        ("solarize", lambda x: jnp.where(x >= 0.5, 1 - x, x)),
        ("gray", lambda x: jnp.broadcast_to((x @ jnp.array([0.299, 0.587, 0.114]))[..., None], x.shape)),
    ],
)
def test_a_certain_operation_acts_alone_on_every_image(images, key, setting, expected):
    drawn = augment(key, images, dataclasses.replace(NOTHING, **{setting: 1.0}))
    np.testing.assert_allclose(drawn, expected(images), rtol=1e-5)


def test_a_probability_is_the_share_of_images_that_change(key):
    images = jnp.broadcast_to(jnp.linspace(0, 1, 4).reshape(1, 1, 4, 1), (400, 1, 4, 1))
    flipped = augment(key, images, dataclasses.replace(NOTHING, flip=0.25))
    changed = float(jnp.mean(flipped[:, 0, 0, 0] != images[:, 0, 0, 0]))
    assert 0.18 < changed < 0.32


def test_a_crop_is_a_box_of_the_stated_area_and_aspect():
    min_scale = 0.3
    h, w = 16, 16
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(h) / h, jnp.arange(w) / w, indexing="ij"), -1)
    crop = jax.jit(jax.vmap(lambda k: random_resized_crop(k, ramp, min_scale)))
    crops = crop(jax.random.split(jax.random.key(0), 50))
    # Inside, a crop of a ramp is a ramp whose slope is the box's relative side.
    height = (crops[:, 9, 8, 0] - crops[:, 7, 8, 0]) / 2 * h
    width = (crops[:, 8, 9, 1] - crops[:, 8, 7, 1]) / 2 * w
    area = height * width
    assert float(area.min()) > min_scale * 0.9
    assert float(area.max()) < 1.001
    assert float(area.std()) > 0.05
    assert float((height / width).min()) > 3 / 4 - 0.01
    assert float((height / width).max()) < 4 / 3 + 0.01
    assert float(crops.min()) >= 0
    assert float(crops.max()) <= float(ramp.max()) + 1e-5


@pytest.mark.parametrize("turns", [0.0, 0.1, 1 / 3, -0.25])
def test_hue_shifts_as_in_the_standard_library(images, turns):
    shifted = np.asarray(shift_hue(images[0], jnp.float32(turns)))
    for pixel, moved in zip(np.asarray(images[0]).reshape(-1, 3), shifted.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
        np.testing.assert_allclose(moved, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=1e-5)


def test_gray_pixels_have_no_hue_and_one_channel_has_no_luma():
    gray = jnp.full((2, 2, 3), 0.4)
    np.testing.assert_allclose(shift_hue(gray, jnp.float32(0.3)), gray, rtol=1e-6)
    single = jnp.full((2, 2, 1), 0.4)
    np.testing.assert_array_equal(grayscale(single), single)


@pytest.mark.parametrize(
    ("setting", "invariant"),
    [
        ("brightness", lambda x: x / x.mean()),
        ("contrast", lambda x: (x - grayscale(x).mean()) / x.std()),
        ("saturation", lambda x: grayscale(x)),
        ("hue", lambda x: jnp.stack([x.max(-1), x.min(-1)])),
    ],
)
def test_each_jitter_changes_the_image_and_keeps_what_it_should(key, setting, invariant):
    image = jnp.asarray(np.random.RandomState(0).uniform(0.4, 0.6, size=(8, 8, 3)), jnp.float32)
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    changed = color_jitter(key, image, AugmentSpec(**{**still, setting: 0.3}))
    assert float(jnp.abs(changed - image).max()) > 1e-3
    np.testing.assert_allclose(invariant(changed), invariant(image), rtol=1e-4, atol=1e-4)


def test_blur_keeps_constants_and_smooths_the_rest(images, key):
    constant = jnp.full((8, 8, 3), 0.3)
    np.testing.assert_allclose(gaussian_blur(key, constant), constant, rtol=1e-5)
    blurred = jax.vmap(gaussian_blur)(jax.random.split(key, 5), images)
    assert float(blurred.std()) < float(images.std())


def test_a_random_shift_moves_the_image_by_whole_pixels_and_fills_with_zeros(key):
    image = jnp.arange(1.0, 17.0).reshape(4, 4, 1) / 16
    moved = {(y, x): jnp.pad(image, ((2, 2), (2, 2), (0, 0)))[y : y + 4, x : x + 4] for y in range(5) for x in range(5)}
    seen = set()
    for draw in jax.vmap(lambda k: random_shift(k, image, 2))(jax.random.split(key, 200)):
        seen |= {corner for corner, expected in moved.items() if np.array_equal(draw, expected)}
    assert seen == set(moved)


def test_padding_leaves_the_other_draws_as_they_are(key, images):
    plain, shifted = (augment(key, images, AugmentSpec(1.0, padding=padding, flip=0.0)) for padding in (0, 1))
    corners = [shifted[:, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    for n in range(len(images)):
        # Colours are drawn alike: what is inside both is the same up to the shift.
        assert any(np.allclose(plain[n, 1:7, 1:7], corner[n], atol=0.1) for corner in corners)


def test_cubic_crops_stay_in_range_and_keep_constants(key, images):
    sharp = jnp.round(images)
    for image in jax.vmap(lambda k, x: random_resized_crop(k, x, 0.2, "cubic"))(jax.random.split(key, 5), sharp):
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
    constant = jnp.full((8, 8, 3), 0.3)
    np.testing.assert_allclose(random_resized_crop(key, constant, 0.2, "cubic"), constant, rtol=1e-5)
