import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.diff_augment import diff_augment
from ssdd_jax.core.pool import init_member, train_member
from ssdd_jax.evals.student import LOSSES, make_augment, make_student_step, repr_error, student_loss
from ssdd_jax.nets import make_learner
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import LABEL_RECIPES, RECIPES, RecipeSpec
from ssdd_jax.settings.fields import TARGET_KINDS

pytestmark = pytest.mark.core


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def test_repr_error_is_zero_for_perfect_and_one_for_the_mean():
    reprs = draw(20, 5) * jnp.arange(1, 6)[None] + 10
    assert float(repr_error(reprs, reprs)) == 0.0
    mean = jnp.broadcast_to(reprs.mean(0, keepdims=True), reprs.shape)
    np.testing.assert_allclose(repr_error(mean, reprs), 1.0, rtol=1e-5)
    np.testing.assert_allclose(repr_error((mean + reprs) / 2, reprs), 0.25, rtol=1e-4)


def test_repr_error_does_not_depend_on_scale_or_offset():
    predicted, reprs = draw(20, 5), draw(20, 5, seed=1)
    np.testing.assert_allclose(repr_error(3 * predicted + 2, 3 * reprs + 2), repr_error(predicted, reprs), rtol=1e-4)


def test_a_student_step_trains_on_the_rows_of_its_batch_and_learns(key):
    learner, optimizer = make_learner("convnet", (4,), (4, 4, 1), 3), optax.sgd(0.05, 0.9)
    images, reprs = draw(10, 4, 4, 1), draw(10, 3, seed=1)
    member = jax.jit(lambda k: init_member(k, learner, optimizer))(key)
    step, schedule = jax.jit(make_student_step(learner=learner, optimizer=optimizer)), batch_schedule(key, 10, 4, 30)
    rows = schedule[2]
    expected, _ = jax.jit(lambda m, x, y: train_member(m, x, y, learner, optimizer))(member, images[rows], reprs[rows])
    once, _ = step(member, 2, schedule, images, reprs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), once, expected)
    losses = []
    for i in range(30):
        member, metrics = step(member, i, schedule, images, reprs)
        losses.append(float(metrics["loss"]))
    assert int(member.age) == 30
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


def test_every_kind_of_targets_has_its_loss_and_its_recipe():
    assert tuple(LOSSES) == tuple(RECIPES) == TARGET_KINDS


def test_the_losses_are_those_of_numpy_in_float64():
    outputs, targets = draw(7, 5), 2 * draw(7, 5, seed=1)
    x, y = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    log_shares = x - np.log(np.exp(x).sum(1, keepdims=True))
    teachers = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    np.testing.assert_allclose(LOSSES["representation"](outputs, targets), np.mean((x - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(LOSSES["logits"](outputs, targets), -np.mean(np.sum(teachers * log_shares, 1)), rtol=1e-5)
    classes = np.array([0, 4, 2, 2, 1, 3, 0])
    expected = -np.mean(log_shares[np.arange(7), classes])
    # Centred as kernel methods take them, and scaled.
    for labels in (np.eye(5)[classes], np.eye(5)[classes] - 0.2, 3 * np.eye(5)[classes] - 1):
        np.testing.assert_allclose(LOSSES["labels"](outputs, jnp.asarray(labels, jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_a_recipe_may_name_a_loss_of_its_own_that_reads_targets_as_they_are(kind):
    outputs, targets = draw(7, 5), 2 * draw(7, 5, seed=1)
    x, y = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    assert student_loss(RecipeSpec(), kind) is LOSSES[kind]
    found = student_loss(RecipeSpec(loss="squared_error"), kind)(outputs, targets)
    np.testing.assert_allclose(found, np.mean([np.sum((a - b) ** 2) / 2 for a, b in zip(x, y, strict=True)]), rtol=1e-5)


def test_the_recipe_of_frepo_reads_labels_by_their_squared_error_under_its_own_augmentation():
    recipe = LABEL_RECIPES["frepo"]
    assert recipe.loss == "squared_error"
    assert recipe.augment == "flip_jitter_zoom_rotate_translate_hole"
    assert [name for name, other in LABEL_RECIPES.items() if other.loss] == ["frepo"]


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_a_step_follows_the_gradient_of_the_loss_of_its_kind(key, kind):
    learner, optimizer = make_learner("convnet", (4,), (4, 4, 1), 3), optax.sgd(0.1)
    images, targets = draw(6, 4, 4, 1), draw(6, 3, seed=1)
    member = jax.jit(lambda k: init_member(k, learner, optimizer))(key)
    step = jax.jit(make_student_step(learner=learner, optimizer=optimizer, loss=LOSSES[kind]))
    after, metrics = step(member, 0, jnp.arange(6)[None], images, targets)
    value = lambda params: LOSSES[kind](learner.apply_train({**member.variables, "params": params}, images)[0], targets)
    loss, gradients = jax.jit(jax.value_and_grad(value))(member.variables["params"])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, member.variables["params"], gradients)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), after.variables["params"], expected)


def test_an_augmented_step_trains_on_what_seed_and_step_make_of_its_batch(key):
    learner, optimizer, augment = make_learner("convnet", (2,), (4, 4, 1), 3), optax.sgd(0.1), make_augment(RecipeSpec(augment="color"))
    images, targets, schedule = draw(6, 4, 4, 1), draw(6, 3, seed=1), jnp.arange(6).reshape(2, 3)
    member = jax.jit(lambda k: init_member(k, learner, optimizer))(key)
    step = jax.jit(make_student_step(learner=learner, optimizer=optimizer, augment=augment))
    after, _ = step(member, 1, schedule, images, targets, 7)
    # The draw 0 of this stream is the order of the batches.
    changed = jax.jit(lambda k: diff_augment(k, images[3:], "color", siamese=False))(step_key(7, Stream.STUDENT_STEP, 2))
    plain = jax.jit(make_student_step(learner=learner, optimizer=optimizer))
    expected, _ = plain(member, 0, jnp.arange(3)[None], changed, targets[3:])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), after.variables, expected.variables)
    for step_number, seed in ((1, 8), (0, 7)):
        other, _ = step(member, step_number, schedule[::-1] if step_number == 0 else schedule, images, targets, seed)
        assert any(not np.allclose(x, y) for x, y in zip(*map(jax.tree.leaves, (after.variables, other.variables)), strict=True))


@pytest.mark.parametrize(("name", "align_corners"), [("dc", False), ("krr_st_label", True), ("datm", True)])
def test_label_recipes_augment_with_the_grid_of_their_code(name, align_corners):
    images, key = draw(2, 6, 6, 1), jax.random.key(0)
    found, expected = (
        str(jax.make_jaxpr(fn)(key, images))
        for fn in (
            make_augment(LABEL_RECIPES[name]),
            lambda k, x: diff_augment(k, x, "color_crop_cutout_flip_scale_rotate", siamese=False, align_corners=align_corners),
        )
    )
    assert found == expected


def test_without_augmentation_a_step_is_the_update_of_its_rows_and_nothing_else(key):
    learner, optimizer = make_learner("convnet", (2,), (4, 4, 1), 3), optax.sgd(0.1)
    member = jax.eval_shape(lambda: init_member(key, learner, optimizer))
    batch = (0, jnp.zeros((2, 3), int), draw(6, 4, 4, 1), draw(6, 3))

    def plain(member, number, schedule, images, targets):
        rows = schedule[number]
        return train_member(member, images[rows], targets[rows], learner, optimizer)

    assert make_augment(RECIPES["labels"]) is None
    step = make_student_step(learner=learner, optimizer=optimizer, augment=make_augment(RECIPES["labels"]))
    programs = [jax.jit(lambda *args, fn=fn: jax.tree.leaves(fn(*args))).lower(member, *batch).as_text() for fn in (step, plain)]
    assert programs[0] == programs[1]
