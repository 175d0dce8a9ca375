from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.storage import count_stored_scalars

from ssdd_jax.cli import config_folder
from ssdd_jax.core.distilled import Layout, budget_scalars
from ssdd_jax.errors import InputError
from ssdd_jax.methods import regression
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.stages.networks import repr_width

ROTATIONS = ("identity", "rot90", "rot180", "rot270")


def plan_method(name, method, num_pairs, shape, width, shifts):
    return regression.plan(name, method, Sizes(num_pairs, shape, width, 0, shifts))


def load(name, variant=""):
    scope = {}
    exec((config_folder() / f"{name}.py").read_text(), scope)
    return to_spec(scope["get_config"](variant))


def test_cifar100_at_100_pairs_has_the_papers_budget_shapes_and_number_of_images():
    spec = load("cifar100")
    ours = plan_method("ours", spec.methods["ours"], spec.num_pairs, (32, 32, 3), 512, {})
    assert ours.budget == 100 * (3 * 32 * 32 + 512) == 358_400
    assert ours.layout.base_shape == (16, 16, 3)
    # Bases 200 x 768 and 200 x 512, two means, three networks 200 -> 4 -> 200, and 400 coefficients an image.
    fixed = 200 * 768 + 200 * 512 + 768 + 512 + 3 * (2 * 200 * 4 + 4 + 200)
    assert ours.num_images == (358_400 - fixed) // 400 == 239
    assert ours.stored_scalars == fixed + 239 * 400
    # Without the two means, which the published count leaves out, it is the published 242.
    assert (358_400 - fixed + 768 + 512) // 400 == 242


@pytest.mark.parametrize(
    ("name", "variant", "shape"),
    [
        ("arrays", "", (32, 32, 3)),
        ("arrays", "n50", (32, 32, 3)),
        ("cifar100", "", (32, 32, 3)),
        ("digits", "", (8, 8, 1)),
        ("fashion_mnist", "", (32, 32, 1)),
        ("fashion_mnist", "cpu", (28, 28, 1)),
    ],
)
def test_every_method_of_every_config_fits_its_budget_and_nearly_fills_it(name, variant, shape):
    spec = load(name, variant)
    # Methods of labels have as many images as were published: see test_configs.
    for method, settings in spec.methods.items():
        if settings.kind != "regression":
            continue
        plan = plan_method(method, settings, spec.num_pairs, shape, repr_width(spec.teacher, shape), dict.fromkeys(settings.views, 1.0))
        assert 0.95 * plan.budget < plan.stored_scalars <= plan.budget, method


def test_krr_st_stores_exactly_its_pairs():
    plan = plan_method("krr_st", RegressionSpec(), 100, (32, 32, 3), 512, {})
    assert (plan.num_images, plan.stored_scalars) == (100, 358_400)


@pytest.mark.parametrize(("bits", "images"), [(32, 10), (8, 39), (4, 79)])
def test_fewer_bits_hold_more_images_in_the_same_budget(bits, images):
    # An image and its representation, 3,200 numbers, have two steps of 32 bits besides.
    plan = plan_method("krr_st", RegressionSpec(bits=bits), 10, (32, 32, 3), 128, {})
    assert plan.num_images == images
    assert plan.stored_scalars == (32_000 if bits == 32 else -(-images * (3200 * bits + 64) // 32))


def test_bits_are_among_those_that_there_are():
    with pytest.raises(InputError, match=r"methods\.ours\.bits is 16, expected one of 32, 8, 4"):
        plan_method("ours", RegressionSpec(bits=16), 10, (32, 32, 3), 128, {})


@given(
    num_pairs=st.integers(1, 60),
    side=st.integers(4, 16),
    channels=st.sampled_from([1, 3]),
    width=st.integers(1, 64),
    bases=st.integers(0, 40),
    repr_bases=st.integers(0, 40),
    hidden=st.integers(0, 8),
    shift=st.floats(0, 2),
)
def test_no_plan_exceeds_its_budget_and_one_more_image_would(num_pairs, side, channels, width, bases, repr_bases, hidden, shift):
    method = RegressionSpec(image_bases=bases, repr_bases=repr_bases, views=ROTATIONS, hidden=hidden)
    shape = (side, side, channels)
    if bases > side * side * channels or repr_bases > width:
        with pytest.raises(InputError, match="expected at most"):
            plan_method("ours", method, num_pairs, shape, width, dict.fromkeys(ROTATIONS, shift))
        return
    try:
        plan = plan_method("ours", method, num_pairs, shape, width, dict.fromkeys(ROTATIONS, shift))
    except InputError:
        layout = Layout(shape, shape, ROTATIONS, ("stored", *["shared" if shift <= method.shared_below else "stored"] * 3))
        least = count_stored_scalars(1, layout, width, num_image_bases=bases, num_repr_bases=repr_bases)
        assert least > budget_scalars(num_pairs, shape, width)
        return
    sizes = {"num_image_bases": bases, "num_repr_bases": repr_bases, "hidden": hidden}
    assert plan.stored_scalars <= plan.budget
    assert count_stored_scalars(plan.num_images + 1, plan.layout, width, **sizes) > plan.budget
    assert ("shared" in plan.layout.view_targets) == (shift <= method.shared_below)


def test_automatic_kinds_take_networks_only_where_they_fit_more_images():
    method = RegressionSpec(base_size=14, image_bases=24, repr_bases=16, views=ROTATIONS, hidden=8)
    shifts = {"rot90": 1.5, "rot180": 0.01, "rot270": 1.4}
    few = plan_method("ours", method, 8, (28, 28, 1), 128, shifts)
    many = plan_method("ours", method, 20, (28, 28, 1), 128, shifts)
    assert few.layout.view_targets == ("stored", "stored", "shared", "stored")
    assert many.layout.view_targets == ("stored", "network", "shared", "network")
    # One network costs V (2 h + 1) + h numbers, stored coefficients V an image.
    assert few.num_images * 16 < 16 * 17 + 8 < many.num_images * 16


def test_joint_steps_without_a_network_are_noted():
    method = RegressionSpec(base_size=14, image_bases=24, repr_bases=16, views=ROTATIONS, hidden=8, joint=0.5)
    noted, joined = (plan_method("ours", method, count, (28, 28, 1), 128, dict.fromkeys(ROTATIONS, 1.0)) for count in (8, 20))
    assert noted.notes == (
        "config.methods.ours.joint is 0.5, but networks predict no view's targets, since others fit more images; it has no effect",
    )
    assert "network" in joined.layout.view_targets
    assert joined.notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_bases": 500, "base_size": 14}, "image_bases is 500, expected at most 196"),
        ({"repr_bases": 129}, "repr_bases is 129, expected at most 128"),
        ({"base_size": 29}, "base_size is 29, expected at most 28"),
        ({"image_bases": 60}, "the bases and one image take .* the budget of 10 pairs is 9120; lower image_bases"),
        ({"images": 11}, "images is 11, expected at most 10"),
        ({"views": ("rot90",)}, "with automatic targets: expected 'identity' first"),
        ({"views": ("rot90", "hflip"), "view_targets": ("stored", "network")}, "networks predict shifts .* expected 'identity' first"),
        ({"views": ("identity", "identity")}, "expected one or more distinct names"),
        ({"joint": 0.5, "view_targets": ("stored",)}, r"joint is 0\.5, but networks predict no view's targets .* set it to 0"),
        ({"views": ("identity", "rot45")}, "unknown view 'rot45'"),
        ({"views": ("identity", "hflip"), "view_targets": ("stored", "stord")}, "expected one of stored, shared, network"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(changes, message):
    shifts = {"identity": 0.0, "rot90": 1.0, "rot45": 1.0, "hflip": 0.0}
    with pytest.raises(InputError, match=message) as caught:
        plan_method("krr_st", replace(RegressionSpec(), **changes), 10, (28, 28, 1), 128, shifts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (dict(image_store="plain", image_bases=9), "image_bases is 9, which store 'plain' has no use for; set it to 0, or choose another"),
        (dict(image_store="factored", image_bases=9, frequencies=12), "frequencies is 12, which store 'factored' has no use for"),
        (dict(image_store="cosine", image_bases=9), "frequencies is 0; store 'cosine' needs it above 0"),
        (dict(frequencies=9), "image_bases is 0; store 'cosine' needs it above 0"),
        (dict(image_store="factored"), "image_bases is 0; store 'factored' needs it above 0"),
        (dict(repr_store="plain", repr_bases=3), "repr_bases is 3, which store 'plain' has no use for"),
        (dict(repr_store="cosine", repr_bases=3), "frequencies is not for repr_store; choose another store in config.methods.mine"),
    ],
)
def test_a_store_has_what_it_is_built_with_and_nothing_that_has_no_effect(settings, fault):
    with pytest.raises(InputError, match=f"config.methods.mine.{fault}"):
        plan_method("mine", RegressionSpec(**settings), 10, (8, 8, 1), 16, {})


def test_a_set_has_at_most_all_training_images_and_says_so():
    sizes = Sizes(10, (8, 8, 1), 16, 0, {}, num_train=7)
    plan = regression.plan("mine", RegressionSpec(), sizes)
    assert (plan.num_images, plan.stored_scalars) == (7, 7 * 80)
    assert plan.notes == ("the budget holds 10 images, there are 7 training images: the set has them all",)
    assert regression.plan("mine", RegressionSpec(images=7), sizes).notes == ()
