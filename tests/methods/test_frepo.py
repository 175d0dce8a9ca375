import json
import shutil
from dataclasses import replace
from math import prod, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import krr as oracle

from ssdd_jax import read_pairs
from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.krr import centred_labels
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.outer import make_outer_step, outer_loss, support_rows
from ssdd_jax.core.pool import half_squared_error, init_member
from ssdd_jax.errors import BudgetError, InputError
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.kernels.infinite import fc_ntk
from ssdd_jax.methods import frepo
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.nets import NETS, make_learner
from ssdd_jax.settings.methods import FrepoSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.settings.spec import NetSpec, OuterSpec, RunSpec
from ssdd_jax.stages import pipeline

SHAPE, CLASSES = (4, 4, 1), 3
RUN = RunSpec(outer=OuterSpec(steps=10))
SMALL = FrepoSpec(pool_size=2, max_age=3, learning_rate=0.1, member_learning_rate=0.01)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape))


def make_set(count=3, flip=False, labels=None):
    views, targets = (("identity", "hflip"), ("stored", "shared")) if flip else (("identity",), ("stored",))
    layout = Layout(SHAPE, SHAPE, views, targets, target_kind="labels")
    # Learned labels: neither one-hot nor of sum zero, and the classes of the second not apart.
    labels = 0.3 * draw(count, CLASSES, seed=4).at[1].set(jnp.array([0.4, 0.3, -1.0])) if labels is None else labels
    return init_distilled(draw(count, *SHAPE, seed=3), jnp.broadcast_to(labels, (len(views), *labels.shape)), layout)


def of_module(module):
    """Return a network as functions that compute in the precision of their arguments, where `make_learner` rounds to float32."""
    apply = lambda variables, images: module.apply(variables, images)

    def apply_train(variables, images):
        (_, outputs), updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated["batch_stats"]

    init = lambda key: module.init(key, jnp.zeros((1, *SHAPE)))
    return Learner(init, lambda v, x: apply(v, x)[1], apply_train, lambda v, x: apply(v, x)[0])


def make_case():
    """Return a learner that starts with variables in which its norm does something, these, real images and their centred labels."""
    learner = of_module(NETS["convnet_frepo"].build((3, 8), CLASSES, False))
    of = lambda path, leaf: 1 + 0.3 * jnp.abs(draw(*leaf.shape)) if path[-1].key in ("var", "scale") else 0.5 * draw(*leaf.shape)
    variables = jax.tree_util.tree_map_with_path(of, jax.eval_shape(learner.init, jax.random.key(0)))
    # Drawing every layer takes most of a step's compilation.
    return (
        learner._replace(init=lambda key: variables),
        variables,
        draw(5, *SHAPE, seed=6),
        centred_labels(jnp.array([0, 1, 2, 0, 1]), CLASSES),
    )


@pytest.mark.core
def test_the_margin_has_its_known_value_and_moves_only_labels_whose_classes_are_not_apart(float64):
    labels = jnp.array([[0.6, -0.2, -0.4], [0.1, 0.05, -0.15]])
    value, gradient = jax.value_and_grad(frepo.label_margin)(labels)
    np.testing.assert_allclose(value, -0.19166666666666665, rtol=1e-14)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-15)
    # Labels as a set starts with have a gap of 1 / sqrt(k / 10), at least 1 / k.
    for classes in (2, 100):
        start = jnp.asarray((np.eye(classes) - 1 / classes) / sqrt(classes / 10))
        value, gradient = jax.value_and_grad(frepo.label_margin)(start)
        np.testing.assert_allclose(value, -1 / classes, rtol=1e-12)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.core
def test_the_data_term_has_its_known_value(float64):
    shape, layout = (2, 2, 1), Layout((2, 2, 1), (2, 2, 1), target_kind="labels")
    support = jnp.asarray(np.sin(0.37 * np.arange(12) ** 2).reshape(3, *shape))
    points = jnp.asarray(np.cos(0.29 * np.arange(20) ** 2).reshape(5, *shape))
    labels, classes = (centred_labels(jnp.array(of), 3).astype(support.dtype) for of in ([0, 1, 2], [0, 1, 2, 0, 1]))
    distilled, kernel = init_distilled(support, labels[None], layout), fc_ntk(None, ridge=1e-6, ridge_scale="mean_trace")
    loss, _ = outer_loss(distilled, None, points, classes, kernel=kernel, loss=half_squared_error)
    np.testing.assert_allclose(loss, 0.43532259965050396, rtol=1e-9)


@pytest.mark.core
def test_the_loss_of_a_step_is_its_formula_and_its_gradient_that_of_differences(float64):
    learner, variables, images, targets = make_case()
    spec, distilled = replace(SMALL, flip=True, pool_size=1), make_set(flip=True)
    settings = frepo.step_settings(spec, RUN, learner)
    of_loss = {name: settings[name] for name in ("kernel", "loss", "regularizer")}
    value_of = jax.jit(lambda distilled: outer_loss(distilled, variables, images, targets, **of_loss)[0])
    features = jax.jit(lambda rows: learner.features(variables, rows))
    pixels, labels = (np.asarray(part) for part in (distilled.images.rows, distilled.reprs.rows))
    f_support, every = np.asarray(features(np.concatenate([pixels, pixels[:, :, ::-1]]))), np.concatenate([labels[0], labels[0]])
    predicted = oracle.dual(f_support, every, np.asarray(features(images)), oracle.ridge_strength(f_support, 1e-6, "mean_trace"))
    gaps = [np.diff(np.sort(row)[-2:])[0] for row in every]
    expected = np.mean(np.sum((predicted - targets) ** 2, 1)) / 2 - np.mean(np.minimum(gaps, 1 / 3))

    # A step down the gradient, by all of it.
    settings["optimizer"] = optax.sgd(1.0)
    state = frepo.init_state(jax.random.key(1), spec, distilled, settings)
    after, metrics = jax.jit(make_outer_step(**settings))(state, images, targets, jax.random.key(2))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-7)
    of_images = lambda rows: value_of(replace(distilled, images=replace(distilled.images, rows=rows)))
    of_labels = lambda rows: value_of(replace(distilled, reprs=replace(distilled.reprs, rows=rows)))
    # The trace in the ridge is held constant, which is 1e-6 of it.
    for array, moved, of in ((pixels, after.distilled.images, of_images), (labels, after.distilled.reprs, of_labels)):
        gradient = array - np.asarray(moved.rows)
        np.testing.assert_allclose(gradient, oracle.finite_difference(of, array), rtol=1e-4, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.core
def test_mirrored_copies_of_symmetric_images_change_no_prediction(float64):
    learner, variables, images, _ = make_case()
    # Twice the rows halve the ridge, which at this size changes nothing.
    kernel = frepo.step_settings(replace(SMALL, ridge=1e-10), RUN, learner)["kernel"]
    symmetric = lambda distilled: replace(distilled, images=replace(distilled.images, rows=distilled.images.rows.at[:, :, 2:].set(half)))
    plain, flipped = make_set(), make_set(flip=True)
    half = plain.images.rows[:, :, 1::-1]
    predict = lambda distilled: kernel.predict(variables, *support_rows(symmetric(distilled)), images)[0]
    one, two = jax.jit(lambda *sets: tuple(map(predict, sets)))(plain, flipped)
    assert len(support_rows(flipped)[0]) == 2 * len(support_rows(plain)[0])
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.core
def test_images_and_labels_are_two_leaves_that_move_by_a_rate_of_their_norms_along_a_cosine():
    spec, distilled = FrepoSpec(learning_rate=0.02, final_rate=0.1), jax.tree.map(jnp.float32, make_set())
    optimizer = frepo.make_optimizer(spec, RUN)
    assert len(jax.tree.leaves(distilled)) == 2
    # Gradients of a thousandth and a thousand: LAMB divides by their size, up to an epsilon of 1e-6.
    gradients = replace(distilled, images=jax.tree.map(lambda leaf: 1e-3 * jnp.sign(leaf), distilled.images))
    gradients = replace(gradients, reprs=jax.tree.map(lambda leaf: 1e3 * jnp.sign(leaf), distilled.reprs))
    state, moves = optimizer.init(distilled), []
    for _ in range(11):
        updates, state = jax.jit(optimizer.update)(gradients, state, distilled)
        moves.append(
            [
                float(jnp.linalg.norm(a.ravel()) / jnp.linalg.norm(b.ravel()))
                for a, b in zip(*map(jax.tree.leaves, (updates, distilled)), strict=True)
            ]
        )
    rates = 0.02 * (0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2)
    np.testing.assert_allclose(moves, np.stack([rates, rates], 1), rtol=1e-4)
    updates, _ = optimizer.update(jnp.array([1e-6, 1.0]), optimizer.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_allclose(updates[0] / updates[1], 0.5, rtol=1e-4)


@pytest.mark.core
def test_the_pool_starts_untrained_with_staggered_ages():
    spec, learner = replace(SMALL, pool_size=4, max_age=10), make_learner("convnet_frepo", (2, 3), SHAPE, CLASSES)
    state = frepo.init_state(jax.random.key(1), spec, make_set(), frepo.step_settings(spec, RUN, learner))
    np.testing.assert_array_equal(state.pool.age, [0, 2, 5, 7])
    optimizer = optax.adam(spec.member_learning_rate)
    fresh = jax.vmap(lambda key: init_member(key, learner, optimizer))(jax.random.split(jax.random.key(1), 4))
    jax.tree.map(np.testing.assert_array_equal, state.pool.variables, fresh.variables)
    assert len({np.asarray(kernel).tobytes() for kernel in state.pool.variables["params"]["Conv_0"]["Conv_0"]["kernel"]}) == 4


@pytest.mark.core
@pytest.mark.parametrize("member_images", [0, 2, 5])
def test_a_member_trains_on_some_images_as_they_are_and_never_on_mirrored_ones(member_images):
    distilled, drawn = make_set(flip=True), set()
    settings = frepo.step_settings(replace(SMALL, flip=True, member_images=member_images), RUN, make_case()[0])
    rows = jax.jit(jax.vmap(settings["member_rows"], (0, None)))(jax.random.split(jax.random.key(0), 12), distilled)
    every, targets = np.asarray(distilled.images.rows), np.asarray(distilled.reprs.rows[0])
    for images, labels in zip(*map(np.asarray, rows), strict=True):
        places = [int(np.argmin(np.abs(every - image).sum((1, 2, 3)))) for image in images]
        np.testing.assert_array_equal(images, every[places])
        np.testing.assert_array_equal(labels, targets[places])
        drawn.add(tuple(sorted(places)))
    assert drawn == ({(0, 1), (0, 2), (1, 2)} if member_images == 2 else {(0, 1, 2)})
    assert settings["member_loss"] is half_squared_error
    # Adam's first step is its rate for every parameter.
    updates, _ = settings["inner_optimizer"].update(jnp.array([3.0, -5.0]), settings["inner_optimizer"].init(jnp.ones(2)))
    np.testing.assert_allclose(updates, [-0.01, 0.01], rtol=1e-4)


def plan_frepo(num_pairs=20, num_classes=10, **settings):
    return frepo.plan("frepo", FrepoSpec(**settings), Sizes(num_pairs, (8, 8, 1), 64, num_classes, {}))


def test_a_label_takes_a_number_per_class_of_the_budget_and_a_mirrored_image_none():
    # 20 (64 + 64) numbers hold 34 images of 64 + 10.
    for flip, views, targets in ((False, ("identity",), ("stored",)), (True, ("identity", "hflip"), ("stored", "shared"))):
        plan = plan_frepo(flip=flip)
        assert (plan.num_images, plan.stored_scalars, plan.budget) == (30, 30 * 74, 2560)
        assert (plan.layout.views, plan.layout.view_targets, plan.layout.target_kind) == (views, targets, "labels")
    assert plan_frepo(images=10).stored_scalars == 740


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_pairs": 5}, BudgetError, "the budget of 640 numbers holds 8 images, expected one of each of the 10 classes"),
        ({"images": 15}, InputError, "images is 15, expected a multiple of the 10 classes"),
        ({"images": 40}, InputError, "images is 40, expected at most 34"),
        ({"num_classes": 1}, InputError, r"config\.methods\.frepo: the data have 1 class, expected two or more"),
        ({"net": NetSpec("convnet_frepo", (4,) * 4)}, InputError, r"config\.methods\.frepo\.net: a convnet_frepo of 4 blocks halves"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        plan_frepo(**settings)
    assert "\n" not in str(caught.value)


def test_a_run_makes_sets_of_images_and_labels_and_goes_on_where_it_was(tmp_path):
    config = default_config(flipped=FrepoSpec(images=10, flip=True))
    smoke(config)
    config.num_pairs = 20
    config.methods.flipped.update(learning_rate=0.05, member_images=4)
    spec, workdir = to_spec(config), tmp_path / "run"
    assert (spec.methods["flipped"].pool_size, spec.methods["flipped"].net.widths) == (2, (4,))
    pipeline.run(spec, workdir, "distill")
    folder = workdir / "distilled" / "flipped" / "seed_0"
    manifest, moved = json.loads((folder / "manifest.json").read_text()), load_distilled(folder)
    assert (manifest["num_images"], manifest["stored_scalars"], manifest["teacher"], manifest["steps"]) == (10, 740, None, 6)
    # Ten classes: labels start as they are when centred.
    assert 1e-3 < np.abs(moved.reprs.rows[0] - (np.eye(10) - 0.1)).max() < 1
    pairs = read_pairs(folder)
    assert (pairs.target_kind, len(pairs.images)) == ("labels", 20)
    np.testing.assert_array_equal(pairs.images[10:], pairs.images[:10, :, ::-1])
    np.testing.assert_array_equal(pairs.targets[10:], pairs.targets[:10])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "distill/flipped/seeds_0"]
    assert {"loss", "grad_norm", "member_loss", "member_norm", "mean_age"} <= set(lines[-1])

    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(again / "distilled")
    steps = sorted(entry for entry in again.glob("checkpoints/flipped-*/steps/*") if entry.name.isdigit())
    assert [entry.name for entry in steps] == ["4", "6"]
    shutil.rmtree(steps[-1])
    pipeline.run(spec, again, "distill")
    for file in workdir.glob("distilled/*/*/distilled.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(workdir)).read_bytes()


def test_labels_of_more_classes_start_smaller():
    labels = np.repeat(np.arange(40), 2)
    plan = plan_frepo(num_pairs=100, num_classes=40, images=40)

    class Inputs:
        name, num_classes, run = "frepo", 40, RUN
        class_labels = staticmethod(lambda: labels)
        images = staticmethod(lambda rows: jnp.zeros((len(rows), 8, 8, 1)))

    distilled = frepo.start(FrepoSpec(), plan, Inputs, 0)
    np.testing.assert_allclose(distilled.reprs.rows[0], (np.eye(40) - 1 / 40) / 2, rtol=1e-5)
    assert prod(distilled.images.rows.shape) + prod(distilled.reprs.rows.shape) == plan.stored_scalars
