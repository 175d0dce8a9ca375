import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.views import ROTATIONS, VIEWS, apply_views, check_views

pytestmark = pytest.mark.core


@pytest.fixture
def images():
    return jnp.asarray(np.random.RandomState(0).normal(size=(3, 8, 8, 2)), jnp.float32)


def test_view_zero_is_the_identity(images):
    np.testing.assert_array_equal(apply_views(images, tuple(VIEWS))[0], images)


def test_four_quarter_turns_are_the_identity(images):
    turned = images
    for _ in range(4):
        turned = VIEWS["rot90"](turned)
    np.testing.assert_array_equal(turned, images)
    assert not np.array_equal(VIEWS["rot90"](images), images)


def test_rotations_are_the_powers_of_the_quarter_turn(images):
    views = apply_views(images, ROTATIONS)
    for before, after in itertools.pairwise(views):
        np.testing.assert_array_equal(VIEWS["rot90"](before), after)


@pytest.mark.parametrize("view", ["hflip", "vflip", "rot180"])
def test_reflections_and_the_half_turn_undo_themselves(images, view):
    np.testing.assert_array_equal(VIEWS[view](VIEWS[view](images)), images)
    assert not np.array_equal(VIEWS[view](images), images)


def test_both_flips_are_the_half_turn(images):
    np.testing.assert_array_equal(VIEWS["hflip"](VIEWS["vflip"](images)), VIEWS["rot180"](images))
    np.testing.assert_array_equal(VIEWS["hflip"](images)[:, :, 0], images[:, :, -1])


@pytest.mark.parametrize(
    ("view", "moved", "source", "empty"),
    [
        ("shift_up", np.s_[:, :6], np.s_[:, 2:], np.s_[:, 6:]),
        ("shift_down", np.s_[:, 2:], np.s_[:, :6], np.s_[:, :2]),
        ("shift_left", np.s_[:, :, :6], np.s_[:, :, 2:], np.s_[:, :, 6:]),
        ("shift_right", np.s_[:, :, 2:], np.s_[:, :, :6], np.s_[:, :, :2]),
    ],
)
def test_shifts_move_by_two_pixels_and_fill_with_zeros(images, view, moved, source, empty):
    shifted = VIEWS[view](images)
    np.testing.assert_array_equal(shifted[moved], images[source])
    assert not shifted[empty].any()


@pytest.mark.parametrize(("view", "row", "column"), [("zoom_tl", 0, 0), ("zoom_tr", 0, 1), ("zoom_bl", 1, 0), ("zoom_br", 1, 1)])
@pytest.mark.parametrize("size", [8, 7])
def test_a_zoom_shows_its_quadrant_alone(view, row, column, size):
    corner = (slice(None), slice(0, 3) if row == 0 else slice(-3, None), slice(0, 3) if column == 0 else slice(-3, None))
    images = jnp.zeros((1, size, size, 1)).at[corner].set(1.0)
    brightness = {name: float(VIEWS[name](images).mean()) for name in ("zoom_tl", "zoom_tr", "zoom_bl", "zoom_br")}
    assert max(brightness, key=brightness.get) == view
    assert brightness[view] > 0.5
    assert sum(brightness.values()) == pytest.approx(brightness[view])


def test_colour_scalings(images):
    np.testing.assert_allclose(VIEWS["dim"](images), 0.7 * images, rtol=1e-6)
    np.testing.assert_allclose(VIEWS["bright"](images), 1.3 * images, rtol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_linear_keeps_the_shape_and_acts_on_each_image_alone(images, view):
    of = VIEWS[view]
    assert of(images).shape == images.shape
    np.testing.assert_allclose(of(2 * images + images[::-1]), 2 * of(images) + of(images)[::-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of(images)[1:2], of(images[1:2]), rtol=1e-6, atol=1e-6)


def test_works_inside_jit_vmap_and_grad(images):
    batches = jnp.stack([images, 3 * images])
    total = lambda x: jnp.sum(apply_views(x, ("identity", "rot90", "zoom_br")) ** 2)
    gradients = jax.jit(jax.vmap(jax.grad(total)))(batches)
    np.testing.assert_allclose(gradients[1], 3 * gradients[0], rtol=1e-5, atol=1e-5)
    # Two views are permutations of the pixels: what they add to the gradient is 4 x.
    corner = np.s_[:, :4, :4]
    np.testing.assert_allclose(gradients[0][corner], 4 * images[corner], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("views", "shape", "message"),
    [
        (("identity", "mirror"), (8, 8, 1), "unknown view 'mirror', expected names among identity, rot90"),
        (("identity", "hflip", "hflip"), (8, 8, 1), "expected one or more distinct names"),
        ((), (8, 8, 1), "expected one or more distinct names"),
        (("identity", "rot90"), (8, 6, 1), r"rot90 of \(8, 6, 1\) images, expected square images; pad or resize them"),
    ],
)
def test_views_that_cannot_be_are_refused(views, shape, message):
    with pytest.raises(ValueError, match=message):
        check_views(views, shape)
    with pytest.raises(ValueError, match=message):
        apply_views(jnp.zeros((1, *shape)), views)


def test_images_that_are_not_square_flip():
    check_views(("identity", "rot180", "hflip", "vflip"), (8, 6, 1))
    assert apply_views(jnp.zeros((1, 8, 6, 1)), ("identity", "rot180")).shape == (2, 1, 8, 6, 1)
