import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import diff_augment as oracle

from ssdd_jax.core import diff_augment as module
from ssdd_jax.core.diff_augment import diff_augment, parse_strategy
from ssdd_jax.settings.augment import FREPO_WITH_FLIP, FREPO_WITHOUT_FLIP, OPERATIONS, WITH_FLIP, WITHOUT_FLIP

pytestmark = pytest.mark.core

BY_NAME = dict(zip(OPERATIONS, parse_strategy("_".join(OPERATIONS)), strict=True))
# Not square, one side odd; a crop of this side moves by one pixel.
SHAPE = (6, 9, 3)


# Where later versions of jax have it, and where jax 0.5 does.
X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def draw_images(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def draws(name, shape, count=12):
    return jax.jit(jax.vmap(lambda key: BY_NAME[name].draw(key, shape)))(jax.random.split(jax.random.key(1), count))


def test_the_strategies_are_those_of_the_literature():
    assert WITH_FLIP == "color_crop_cutout_flip_scale_rotate"
    assert WITHOUT_FLIP == "color_crop_cutout_scale_rotate"
    assert FREPO_WITH_FLIP == "flip_jitter_zoom_rotate_translate_hole"
    assert FREPO_WITHOUT_FLIP == "jitter_zoom_rotate_translate_hole"


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="strategy 'color_blur' has the operation 'blur', expected some of color, crop"):
        parse_strategy("color_blur")


WARPS = ("scale", "rotate", "zoom", "translate")
CASES = [(name, align, SHAPE) for name in OPERATIONS for align in ((False, True) if name in WARPS else (False,))]


@pytest.mark.parametrize(("name", "align_corners", "shape"), [*CASES, ("color", False, (4, 4, 1)), ("jitter", False, (4, 4, 1))])
def test_an_operation_is_that_of_its_formula(name, align_corners, shape):
    images, drawn = draw_images(12, *shape), draws(name, shape)
    found = jax.jit(jax.vmap(lambda image, own: BY_NAME[name].apply(image, own, align_corners)))(images, drawn)
    for image, own, out in zip(np.asarray(images), np.asarray(drawn), found, strict=True):
        np.testing.assert_allclose(out, oracle.apply(name, image, own, align_corners), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "radius", "size", "hole"), [(32, 4, 16, 8), (28, 4, 14, 7), (64, 8, 32, 16), (16, 2, 8, 4), (8, 1, 4, 2), (9, 1, 5, 2)]
)
def test_a_crop_moves_by_an_eighth_and_a_cutout_takes_half_of_the_side_or_a_hole_a_quarter(side, radius, size, hole):
    assert (module.crop_radius(side), module.cutout_size(side), module.cutout_size(side, module.HOLE)) == (radius, size, hole)


def test_parameters_cover_their_ranges_and_no_more():
    limits = {name: np.asarray(draws(name, (8, 9, 3), 400)) for name in OPERATIONS}
    assert limits["color"].shape == (400, 3)
    # Three draws of their own, also with one channel.
    assert abs(np.corrcoef(limits["color"].T)[np.triu_indices(3, 1)]).max() < 0.2
    assert set(map(tuple, limits["crop"])) == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    # An even box of 4 has centres from border to border, an odd one of 5 the pixels.
    assert [sorted(set(column)) for column in limits["cutout"].T] == [list(range(9)), list(range(9))]
    assert 1 / 1.2 <= limits["scale"].min() < 0.85 < 1.18 < limits["scale"].max() <= 1.2
    assert -15 <= limits["rotate"].min() < -14 < 14 < limits["rotate"].max() <= 15
    assert 0.4 < np.mean(limits["flip"] < 0.5) < 0.6
    logs = np.log(limits["jitter"])
    assert logs.shape == (400, 3)
    assert -0.25 <= logs.min() < -0.24 < 0.24 < logs.max() <= 0.25
    assert abs(np.corrcoef(logs.T)[np.triu_indices(3, 1)]).max() < 0.2
    # As likely to zoom out as in.
    assert 0.8 <= limits["zoom"].min() < 0.81 < 1.23 < limits["zoom"].max() <= 1.25
    assert 0.4 < np.mean(limits["zoom"] < 1) < 0.6
    assert limits["translate"].shape == (400, 2)
    assert -0.125 <= limits["translate"].min() < -0.12 < 0.12 < limits["translate"].max() <= 0.125
    # A box of 2 of 8 and of 9 pixels.
    assert [sorted(set(column)) for column in limits["hole"].T] == [list(range(9)), list(range(10))]


def test_a_half_changes_no_colour_and_one_channel_has_no_saturation():
    image, color = draw_images(*SHAPE), jax.jit(module.color)
    np.testing.assert_allclose(color(image, jnp.full(3, 0.5)), image, atol=1e-6)
    assert np.abs(color(image, jnp.array([0.5, 0.0, 0.5])) - image).max() > 0.1
    np.testing.assert_array_equal(*(color(image[..., :1], jnp.array([0.5, saturation, 0.5])) for saturation in (0.0, 1.0)))


def test_a_box_that_hangs_over_the_border_shrinks():
    image, cutout = jnp.ones((8, 8, 1)), jax.jit(module.cutout)
    zeros = lambda centre: int((np.asarray(cutout(image, jnp.array(centre))) == 0).sum())
    # A box of 4 covers centre - 2 to centre + 1.
    assert [zeros(centre) for centre in ((4, 4), (0, 4), (8, 4), (0, 0), (8, 8))] == [16, 8, 8, 4, 4]


warp = jax.jit(module.warp, static_argnums=2)


@pytest.mark.parametrize("align_corners", [False, True])
def test_no_warp_is_the_identity_and_scales_above_one_zoom_out(align_corners):
    image, ones = draw_images(16, 16, 1), jnp.ones((16, 16, 1))
    np.testing.assert_allclose(warp(image, jnp.eye(2), align_corners), image, atol=1e-5)
    outer, inner = (warp(ones, factor * jnp.eye(2), align_corners) for factor in (1.2, 1 / 1.2))
    assert float(outer[0].max()) < 0.9
    np.testing.assert_allclose(outer[4:-4, 4:-4], 1, atol=1e-5)
    # What is enlarged has no outside, up to half a pixel.
    np.testing.assert_allclose(inner[1:-1, 1:-1], 1, atol=1e-5)


def test_an_image_of_one_pixel_stays_finite():
    for align_corners in (False, True):
        np.testing.assert_allclose(warp(jnp.ones((1, 1, 1)), jnp.eye(2), align_corners), 1.0, rtol=1e-6)


@pytest.mark.parametrize("strategy", [WITH_FLIP, FREPO_WITH_FLIP])
def test_every_operation_is_drawn_and_all_images_share_it_and_its_parameters(strategy):
    shape, names, operations = (4, 5, 2), set(), strategy.split("_")
    images = draw_images(2, *shape)
    parameters = jax.jit(lambda key: {name: BY_NAME[name].draw(jax.random.split(key)[1], shape) for name in operations})
    augment = jax.jit(lambda key: diff_augment(key, images, strategy, siamese=True, align_corners=True))
    for seed in range(30):
        drawn, found = parameters(jax.random.key(seed)), augment(jax.random.key(seed))
        same = lambda name: all(
            np.allclose(out, oracle.apply(name, np.asarray(image), np.asarray(drawn[name]), True), atol=1e-5)  # noqa: B023
            for image, out in zip(images, found, strict=True)  # noqa: B023
        )
        matching = {name for name in operations if same(name)}
        assert matching
        # Where several match, as where nothing is moved and nothing flipped, it says nothing.
        names |= matching if len(matching) == 1 else set()
    assert names == set(operations)


@pytest.mark.parametrize("name", OPERATIONS)
def test_siamese_batches_of_any_size_share_the_draw_of_a_key(key, name):
    real, synthetic = draw_images(3, *SHAPE), draw_images(2, *SHAPE, seed=1)
    run = lambda images: diff_augment(key, images, name, siamese=True)
    both = jnp.concatenate([real, synthetic])
    together, *parts = jax.jit(lambda: (run(both), run(real), run(synthetic)))()
    np.testing.assert_allclose(together, np.concatenate(parts), atol=1e-6)
    assert np.abs(together - both).max() > 0.01


def test_in_siamese_mode_all_images_flip_or_none_and_otherwise_each_on_its_own():
    images, keys = jnp.broadcast_to(draw_images(1, *SHAPE), (6, *SHAPE)), jax.random.split(jax.random.key(3), 40)

    def flipped(siamese):
        out = jax.jit(jax.vmap(lambda key: diff_augment(key, images, "flip", siamese=siamese)))(keys)
        return set(np.asarray((out != images[None]).any((2, 3, 4))).sum(1).tolist())

    assert flipped(True) == {0, 6}
    assert len(flipped(False)) > 3


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("strategy", [WITH_FLIP, WITHOUT_FLIP, FREPO_WITH_FLIP, FREPO_WITHOUT_FLIP])
def test_types_and_shapes_stay(key, strategy, siamese):
    for shape in ((2, 8, 8, 1), (1, 7, 5, 3)):
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert jax.eval_shape(lambda images: diff_augment(key, images, strategy, siamese=siamese), images) == images


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_is_that_of_differences_in_float64(key, name):
    step, random = 1e-5, np.random.RandomState(0)

    def both(images, direction, weights):
        value = lambda x: jnp.sum(weights * jnp.sin(diff_augment(key, x, name, siamese=False)))
        difference = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
        return jnp.sum(jax.grad(value)(images) * direction), difference

    with X64(True):
        gradient, difference = jax.jit(both)(*(jnp.asarray(random.normal(size=(2, 5, 6, 2))) for _ in range(3)))
        assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, difference, rtol=1e-7)


def test_no_operation_changes_nothing():
    images = jnp.ones((2, 4, 4, 1))
    assert diff_augment(jax.random.key(0), images, "", siamese=True) is images
