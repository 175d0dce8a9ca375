import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.distilled import Layout
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.views import apply_views
from ssdd_jax.errors import BudgetError, InputError
from ssdd_jax.methods import idm
from ssdd_jax.methods.class_rows import by_class
from ssdd_jax.methods.network import own_learner
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.settings.methods import IdmSpec
from ssdd_jax.settings.spec import NetSpec

SHAPE = (8, 8, 1)
NET = NetSpec("convnet_in", (4,))
RANDOM = np.random.RandomState(0)


def plan(shape=SHAPE, num_pairs=50, **settings):
    return idm.plan("mine", IdmSpec(net=NET, **settings), Sizes(num_pairs, shape, 64, 3, {}))


def test_a_mosaic_and_its_label_count_once():
    found = plan()
    # 50 (64 + 64) numbers hold 98 images of 64 + 1.
    assert (found.num_images, found.stored_scalars, found.layout.views) == (96, 96 * 65, idm.QUADRANTS)
    assert plan(partition=False).layout.views == ("identity",)


def test_what_cannot_be_cut_into_four_is_refused():
    with pytest.raises(InputError, match=r"partition: images of 9 x 8 pixels cannot be cut into four, .* False, or config\.data\.size"):
        plan((9, 8, 1))
    assert plan((9, 8, 1), partition=False).num_images > 0
    with pytest.raises(BudgetError):
        plan(num_pairs=1)


def test_a_mosaic_has_the_means_of_four_pixels_and_its_views_its_parts():
    parts = [jnp.asarray(RANDOM.normal(size=(2, *SHAPE)), jnp.float32) for _ in range(4)]
    made = idm.mosaic(*parts)
    assert made.shape == (2, *SHAPE)
    np.testing.assert_allclose(made[1, 0, 0], parts[0][1, :2, :2].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(made[1, 4, 1], parts[1][1, :2, 2:4].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(made[0, 1, 4], parts[2][0, 2:4, :2].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(made[0, 7, 7], parts[3][0, 6:, 6:].mean((0, 1)), rtol=1e-5)
    constant = idm.mosaic(*(jnp.full((1, *SHAPE), value) for value in (1.0, 2.0, 3.0, 4.0)))
    np.testing.assert_allclose(apply_views(constant, idm.QUADRANTS)[:, 0], np.arange(1.0, 5.0)[:, None, None, None] * np.ones(SHAPE))


def linear_learner():
    """Return a network whose features are the pixels, and whose outputs are the first ten of them."""
    pixels = lambda variables, images: images.reshape(len(images), -1)
    return Learner(
        init=lambda key: {}, apply=lambda v, x: pixels(v, x)[:, :10], apply_train=lambda v, x: (pixels(v, x), {}), features=pixels
    )


def match_once(spec, layout, images, real, percent=0.0):
    match = jax.jit(idm.make_image_steps(spec, layout, linear_learner(), jnp.ones(real.shape[:2])))
    state = idm.image_optimizer(spec).init(images)
    return match(images, state, {}, jnp.asarray(percent), real, jax.random.key(0))


PLAIN = Layout(SHAPE, SHAPE, target_kind="labels")


def test_classes_take_their_steps_one_after_the_other_and_momentum_moves_the_others_too():
    spec = IdmSpec(net=NET, partition=False, augment="", learning_rate=0.2, momentum=0.5)
    images, real = (jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for shape in ((20, *SHAPE), (10, 3, *SHAPE)))
    moved, _, metrics = match_once(spec, PLAIN, images, real)
    mean = by_class(images, 10).mean(1)
    # 2 / n (mean of the class - mean of the real images), for each of its n images.
    gradient = np.repeat((mean - real.mean(1))[:, None], 2, 1)
    steps = np.array([0.2 * (1 - 0.5 ** (10 - label)) / (1 - 0.5) for label in range(10)])
    expected = by_class(images, 10) - steps[:, None, None, None, None] * gradient
    np.testing.assert_allclose(by_class(moved, 10), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], ((mean - real.mean(1)) ** 2).sum(), rtol=1e-4)


def test_the_cross_entropy_weighs_as_much_as_the_network_is_right():
    spec = IdmSpec(net=NET, partition=False, augment="", ce_weight=0.5)
    images, real = (jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for shape in ((4, *SHAPE), (2, 3, *SHAPE)))
    losses = [match_once(spec, PLAIN, images, real, percent)[2]["loss"] for percent in (0.0, 100.0)]
    pixels = np.asarray(images).reshape(2, 2, -1)[..., :10]
    entropy = sum(np.mean(np.log(np.exp(pixels[label]).sum(-1)) - pixels[label][:, label]) for label in range(2))
    np.testing.assert_allclose(losses[1] - losses[0], 50 * entropy, rtol=0.1)


def test_real_images_that_are_the_distilled_ones_leave_nothing_to_match_whatever_the_augmentation():
    spec = IdmSpec(net=NET, partition=False, augment="color_crop_scale")
    images = jnp.asarray(RANDOM.normal(size=(4, *SHAPE)), jnp.float32)
    assert match_once(spec, PLAIN, images, by_class(images, 2))[2]["loss"] < 1e-6


def queue_of(spec, learner):
    return idm.init_queue(jax.random.key(0), spec, learner)


def test_networks_join_and_the_oldest_make_room():
    spec = IdmSpec(net=NET, queue=4, push_every=2, reset_every=100)
    learner = own_learner("mine", NET, SHAPE, 2)
    queue, renew = queue_of(spec, learner), jax.jit(lambda queue, number: idm.renew(queue, jax.random.key(number), number, spec, learner))
    assert int(queue.joined) == 3
    kernels = lambda queue: jax.tree.leaves(queue.networks.variables["params"])[0]
    queue = replace(queue, right=jnp.ones(4), seen=jnp.full(4, 2.0))
    for number, joined, place in ((0, 4, 3), (1, 4, None), (2, 5, 0), (3, 5, None), (4, 6, 1)):
        before, queue = queue, renew(queue, jnp.asarray(number))
        changed = [i for i in range(4) if bool(jnp.any(kernels(queue)[i] != kernels(before)[i]))]
        assert (int(queue.joined), changed) == (joined, [] if place is None else [place])
        if place is not None:
            assert idm.percent_right(queue, jnp.asarray(place)) == 0
    assert idm.percent_right(queue, jnp.asarray(2)) == 50
    # All are counted anew, but not at step 0.
    spec = replace(spec, push_every=1000, reset_every=7)
    assert [float(idm.renew(queue, jax.random.key(0), jnp.asarray(n), spec, learner).seen.sum()) for n in (1, 7)] == [2.0, 0.0]


def test_only_networks_that_have_joined_are_chosen_and_none_twice():
    spec = IdmSpec(net=NET, queue=6)
    queue = queue_of(spec, own_learner("mine", NET, SHAPE, 2))
    pairs = [idm.choose(jax.random.key(seed), queue, 2).tolist() for seed in range(40)]
    assert {place for pair in pairs for place in pair} == {0, 1, 2}
    assert all(len(set(pair)) == 2 for pair in pairs)


def test_networks_are_trained_and_their_accuracy_is_counted():
    spec = IdmSpec(net=NET, queue=4, network_rate=0.05)
    learner = own_learner("mine", NET, SHAPE, 2)
    labels = jnp.asarray(RANDOM.randint(0, 2, (1, 30, 16)))
    images = jnp.asarray(RANDOM.normal(size=(1, 30, 16, *SHAPE)) + 2 * np.asarray(labels)[..., None, None, None], jnp.float32)
    train = jax.jit(lambda queue: idm.train_networks(queue, jnp.array([2]), images, labels, spec, learner))
    queue, _ = train(queue_of(spec, learner))
    assert queue.networks.age.tolist() == [0, 0, 30, 0]
    assert queue.seen.tolist() == [0, 0, 480, 0]
    again, loss = train(queue)
    assert again.right[2] - queue.right[2] > queue.right[2]
    assert loss < 0.4
    assert idm.percent_right(again, jnp.asarray(2)) == 100 * again.right[2] / 960


def test_a_run_goes_on_with_equal_bits_and_its_views_share_their_labels(goes_on_with_equal_bits):
    spec = IdmSpec(net=NET, augment="", steps=4, batch_per_class=8, queue=4, push_every=2, network_updates=2, network_batch=16)
    distilled, folder = goes_on_with_equal_bits(spec)
    manifest = json.loads((folder / "distilled" / "mine" / "seed_0" / "manifest.json").read_text())
    sizes = ("num_images", "num_views", "stored_scalars", "steps", "teacher")
    assert [manifest[key] for key in sizes] == [10, 4, 650, 4, None]
    np.testing.assert_array_equal(distilled.reprs.codes[:, :, 0], np.arange(10)[None])
