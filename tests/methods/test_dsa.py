import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.matching import class_gradient_distance
from ssdd_jax.core.pool import init_member
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.errors import BudgetError, InputError
from ssdd_jax.methods import dsa
from ssdd_jax.methods.class_rows import by_class
from ssdd_jax.methods.network import own_learner
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.runtime.memory import TooLarge
from ssdd_jax.settings.methods import DsaSpec
from ssdd_jax.settings.spec import NetSpec

SHAPE = (8, 8, 1)
NET = NetSpec("convnet_in", (4, 4))


def plan(num_pairs=50, num_classes=3, **settings):
    return dsa.plan("mine", DsaSpec(**settings), Sizes(num_pairs, SHAPE, 64, num_classes, {}))


def test_a_plan_has_equally_many_images_of_each_class():
    # 50 (64 + 64) numbers hold 98 images of 64 + 1.
    found = plan(image_steps=1, network_epochs=0)
    assert (found.num_images, found.stored_scalars, found.layout.target_kind) == (96, 96 * 65, "labels")
    assert plan(images=30).num_images == 30


def test_the_schedule_is_that_of_the_paper_unless_it_is_given():
    assert [dsa.schedule("mine", DsaSpec(), count) for count in (1, 10, 50)] == [(1, 1), (10, 50), (50, 10)]
    assert dsa.schedule("mine", DsaSpec(network_epochs=3), 10) == (10, 3)
    assert dsa.schedule("mine", DsaSpec(image_steps=4, network_epochs=0), 7) == (4, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"config\.methods\.mine: DSA says nothing about 32 images of a class, only about 1, 10, 20, 30, 40, 50; give image_steps"),
        ({"images": 31}, r"config\.methods\.mine\.images is 31, expected a multiple of the 3 classes"),
        ({"images": 30, "net": NetSpec("convnet")}, r"net is 'convnet', which normalizes over a batch; expected .* such as 'convnet_in'"),
        ({"images": 30, "net": NetSpec("convnet_in", (4,) * 7)}, r"config\.methods\.mine\.net: a convnet_in of 7 blocks"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        plan(**settings)
    assert "\n" not in str(caught.value)


def test_a_budget_below_one_image_a_class_is_no_budget_for_it():
    with pytest.raises(BudgetError, match="holds 1 images, expected one of each of the 3 classes"):
        plan(num_pairs=1)


def state_of(spec, learner):
    images = jnp.asarray(np.random.RandomState(0).normal(size=(4, *SHAPE)), jnp.float32)
    targets = jax.nn.one_hot(jnp.array([0, 0, 1, 1]), 2)
    distilled = init_distilled(images, targets[None], Layout(SHAPE, SHAPE, target_kind="labels"), repr_store=hard_labels)
    network = init_member(jax.random.key(0), learner, dsa.optax.sgd(1.0))
    return dsa.State(distilled, dsa.image_optimizer(spec).init(images), network)


def test_a_step_sums_over_classes_and_keeps_its_momentum():
    spec = DsaSpec(net=NET, augment="", learning_rate=0.1, momentum=0.5)
    learner = own_learner("mine", NET, SHAPE, 2)
    state = state_of(spec, learner)
    real = jnp.asarray(np.random.RandomState(1).normal(size=(2, 3, *SHAPE)), jnp.float32)
    apply = lambda params, images: learner.apply({**state.network.variables, "params": params}, images)

    @jax.jit
    @jax.value_and_grad
    def total(images):
        of = lambda label: class_gradient_distance(
            apply, state.network.variables["params"], real[label], by_class(images, 2)[label], jnp.asarray(label)
        )
        return of(0) + of(1)

    step = jax.jit(dsa.make_image_step(spec, learner, jnp.ones((2, 3))))
    first, velocity = state.distilled.images.rows, 0.0
    for _ in range(2):
        value, gradient = total(first)
        velocity = gradient + 0.5 * velocity
        first = first - 0.1 * velocity
        state, metrics = step(state, real, jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
        np.testing.assert_allclose(state.distilled.images.rows, first, rtol=1e-4, atol=1e-5)


def test_real_images_that_are_the_distilled_ones_leave_nothing_to_match_whatever_the_augmentation():
    spec = DsaSpec(net=NET, augment="color_crop_scale")
    learner = own_learner("mine", NET, SHAPE, 2)
    state = state_of(spec, learner)
    step = jax.jit(dsa.make_image_step(spec, learner, jnp.ones((2, 2))))
    for seed in range(6):
        _, metrics = step(state, by_class(state.distilled.images.rows, 2), jax.random.key(seed))
        assert metrics["loss"] < 0.05


def test_a_network_is_trained_on_the_set():
    spec = DsaSpec(net=NET, augment="color_crop", network_rate=0.1, network_batch=3)
    learner = own_learner("mine", NET, SHAPE, 2)
    state = state_of(spec, learner)
    train = jax.jit(dsa.make_network_epochs(spec, learner, 4, 20))
    trained = train(state.network, state.distilled, jax.random.key(1))
    assert trained.age == 40
    right = lambda network: jnp.argmax(learner.apply(network.variables, state.distilled.images.rows), -1).tolist()
    assert right(trained) == [0, 0, 1, 1] != right(state.network)


def test_a_run_goes_on_with_equal_bits_and_leaves_hard_labels(goes_on_with_equal_bits):
    spec = DsaSpec(net=NetSpec("convnet_in", (4,)), augment="", networks=2, image_steps=2, network_epochs=1, batch_per_class=8)
    distilled, folder = goes_on_with_equal_bits(spec)
    manifest = json.loads((folder / "distilled" / "mine" / "seed_0" / "manifest.json").read_text())
    assert (manifest["num_images"], manifest["stored_scalars"], manifest["steps"], manifest["teacher"]) == (10, 650, 4, None)
    np.testing.assert_array_equal(distilled.reprs.codes[0, :, 0], np.arange(10))


def test_a_step_that_does_not_fit_is_refused_with_what_does(distil):
    spec = DsaSpec(net=NetSpec("convnet_in", (4,)), augment="", networks=1, batch_per_class=16)
    with pytest.raises(TooLarge, match=r"what fits is --config\.methods\.mine\.batch_per_class=[1248]$"):
        distil(spec, memory={"limit_gb": 1.6e-4})
