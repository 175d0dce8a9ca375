"""How real images enter the outer step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.real import RealImages
from ssdd_jax.settings.spec import OuterSpec
from ssdd_jax.stages.dataset import Data

SEED, STEP = jnp.asarray(3), jnp.asarray(5)


def real_images(spec, data):
    return RealImages(spec, len(data.train_images), data.normalize)


@pytest.fixture
def data():
    images = np.random.RandomState(0).randint(0, 256, (12, 6, 6, 3), np.uint8)
    empty = np.zeros((0, 6, 6, 3), np.uint8)
    mean, std = np.full(3, 0.4), np.full(3, 0.2)
    return Data("mine", images, None, empty, None, empty, None, 0, mean, std, "f", "d", None)  # pyright: ignore


def bank(real, data):
    """All views of all images, one view behind the other, as their representations are kept."""
    rows = jnp.arange(len(data.train_images))
    return np.concatenate([real.view(name, jnp.asarray(data.train_images), rows) for name in real.names])


@pytest.mark.parametrize(
    "spec",
    [
        OuterSpec(batch_size=64),
        OuterSpec(batch_size=64, real_views=("identity", "hflip")),
        OuterSpec(batch_size=64, real_augment="crops", real_crops=3, real_padding=2),
    ],
)
def test_a_cached_target_is_of_the_very_image_that_the_student_sees(data, spec):
    real = real_images(spec, data)
    rows, targets = real.draw(STEP, SEED)
    images = real.images(jnp.asarray(data.train_images[rows]), STEP, SEED)
    np.testing.assert_array_equal(images, bank(real, data)[targets])
    assert set(np.asarray(targets) % 12) == set(np.asarray(rows))
    # Every view occurs.
    assert set(np.asarray(targets) // 12) == set(range(len(real.names)))


def test_no_augmentation_is_the_normalized_image(data):
    real = real_images(OuterSpec(batch_size=8), data)
    (rows, _) = real.draw(STEP, SEED)
    images = real.images(jnp.asarray(data.train_images[rows]), STEP, SEED)
    np.testing.assert_allclose(images, (data.train_images[rows] / 255.0 - 0.4) / 0.2, rtol=1e-5, atol=1e-6)


def test_fixed_crops_are_fixed_differ_between_images_and_are_crops(data):
    spec = OuterSpec(real_augment="crops", real_crops=4, real_padding=2, real_flip=0.0)
    same = np.repeat(data.train_images[:1], 12, 0)
    real, rows = real_images(spec, data), jnp.arange(12)
    views = np.stack([real.view(name, jnp.asarray(same), rows) for name in real.names])
    np.testing.assert_array_equal(
        views,
        np.stack([real_images(spec, data).view(name, jnp.asarray(same), rows) for name in real.names]),
    )
    assert len(np.unique(views.reshape(48, -1), axis=0)) > 12
    padded = np.pad(same[0], ((2, 2), (2, 2), (0, 0)))
    boxes = {padded[y : y + 6, x : x + 6].tobytes() for y in range(5) for x in range(5)}
    pixels = np.rint((views * 0.2 + 0.4) * 255).astype(np.uint8)
    assert all(image.tobytes() in boxes for image in pixels.reshape(48, 6, 6, 3))


def test_the_names_of_crops_hold_what_they_depend_on(data):
    names = lambda **settings: real_images(OuterSpec(real_augment="crops", **settings), data).names
    assert len(names(real_crops=3)) == 3
    assert set(names(real_crops=3)) < set(names(real_crops=4))
    assert not set(names()) & set(names(real_padding=2))
    assert not set(names()) & set(names(real_flip=0.0))


def test_fresh_crops_are_new_every_step_and_the_same_for_the_same_step(data):
    real = real_images(OuterSpec(batch_size=12, real_augment="fresh", real_padding=2), data)
    assert real.names == ()
    (rows,) = real.draw(STEP, SEED)
    assert rows.shape == (12,)
    batch = jnp.asarray(data.train_images)
    images = real.images(batch, STEP, SEED)
    np.testing.assert_array_equal(images, real.images(batch, STEP, SEED))
    assert float(jnp.abs(images - real.images(batch, STEP + 1, SEED)).max()) > 0
    assert float(jnp.abs(images - real.images(batch, STEP, SEED + 1)).max()) > 0
    # Zeros are black pixels, added before the normalization.
    np.testing.assert_allclose(images.min(), (0 - 0.4) / 0.2, rtol=1e-5)


def test_the_rows_of_a_step_do_not_depend_on_the_augmentation(data):
    specs = [OuterSpec(batch_size=16, real_augment=name) for name in ("views", "crops", "fresh")]
    rows = [real_images(spec, data).draw(STEP, SEED)[0] for spec in specs]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert jax.tree.all(jax.tree.map(lambda x: bool((x < 12).all()), rows))
