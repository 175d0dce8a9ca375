import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.krr import finite_difference

from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.krr import centred_labels, kernel_predict, ridge_predict, solve_labels
from ssdd_jax.core.outer import init_outer, outer_loss
from ssdd_jax.errors import InputError
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.kernels.infinite import fc_kernel
from ssdd_jax.methods import kip, regression
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.methods.selection import balanced_images
from ssdd_jax.settings.methods import KipSpec, RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.stages import pipeline

SHAPE = (2, 2, 1)
CLASSES = np.array([0, 1, 2, 0, 1])


def case():
    """Return a set of three images of four pixels with their labels, and five real images with theirs."""
    support = jnp.asarray(np.sin(0.37 * np.arange(12) ** 2).reshape(3, *SHAPE))
    points = jnp.asarray(np.cos(0.29 * np.arange(20) ** 2).reshape(5, *SHAPE))
    labels = centred_labels(jnp.arange(3), 3).astype(support.dtype)
    distilled = init_distilled(support, labels[None], Layout(SHAPE, SHAPE, target_kind="labels"))
    return distilled, points, centred_labels(jnp.asarray(CLASSES), 3).astype(support.dtype)


def loss_of(spec, distilled, points, targets):
    return outer_loss(distilled, None, points, targets, kernel=kip.make_kernel(spec), loss=kip.kip_loss)[0]


def unit_predictions(distilled, points, ridge=1e-6):
    support = distilled.images.rows
    matrices = fc_kernel(support, support), jnp.eye(3), fc_kernel(points, support)
    return kernel_predict(*matrices, ridge=ridge, ridge_scale="mean_trace")[0]


@pytest.mark.core
def test_the_loss_and_its_gradient_have_their_known_values(float64):
    value, gradient = jax.value_and_grad(partial(loss_of, KipSpec()))(*case())
    np.testing.assert_allclose(value, 0.14510753321683462, rtol=1e-9)
    np.testing.assert_allclose(gradient.images.rows[0, 0, 0, 0], 0.04043416450, rtol=1e-6)
    np.testing.assert_array_equal(gradient.reprs.rows, 0)


@pytest.mark.core
def test_learned_labels_have_their_gradient(float64):
    distilled, points, targets = case()
    with_labels = lambda labels: replace(distilled, reprs=type(distilled.reprs)(labels))
    of = jax.jit(lambda labels: loss_of(KipSpec(learn_labels=True), with_labels(labels), points, targets))
    labels = np.asarray(distilled.reprs.rows)
    np.testing.assert_allclose(jax.grad(of)(labels), finite_difference(of, labels), rtol=1e-6, atol=1e-9)


@pytest.mark.core
def test_solved_labels_have_their_known_values_and_solve_the_normal_equations(float64):
    distilled, points, targets = case()
    weights, start = unit_predictions(distilled, points), distilled.reprs.rows[0]
    solved, increases = solve_labels(weights, targets, start, ridge=0.0)
    expected = [
        [0.2926486811, 0.4664889596, -0.7591376407],
        [0.5568339034, -0.5726562182, 0.0158223148],
        [-12.1108325127, 19.5392687853, -7.4284362726],
    ]
    assert increases == 0
    np.testing.assert_allclose(solved, expected, rtol=1e-6)
    np.testing.assert_allclose(weights.T @ (weights @ solved - targets), 0, atol=1e-10)
    np.testing.assert_allclose(kip.kip_loss(weights @ solved, targets), 0.034530971465910935, rtol=1e-6)
    moved = replace(distilled, reprs=type(distilled.reprs)(solved[None]))
    np.testing.assert_allclose(loss_of(KipSpec(), moved, points, targets), 0.034530971465910935, rtol=1e-6)


def test_solved_labels_stay_small_in_float32_and_never_predict_worse_than_one_hot_ones():
    distilled, points, targets = case()
    # Two nearly equal support images: without a ridge their labels would be opposite and of any size.
    rows = distilled.images.rows.at[1].set(distilled.images.rows[0] * (1 + 1e-3))
    weights, start = unit_predictions(replace(distilled, images=type(distilled.images)(rows)), points), distilled.reprs.rows[0]
    of = lambda labels: float(kip.kip_loss(weights @ labels, targets))
    for ridge in (0.0, 1e-6, 1e-2, 1e3):
        solved, _ = solve_labels(weights, targets, start, ridge=ridge)
        assert np.isfinite(solved).all()
        assert of(solved) <= of(start) * (1 + 1e-5)
    np.testing.assert_allclose(solve_labels(weights, targets, start, ridge=1e9)[0], start, atol=1e-4)
    assert float(jnp.abs(solve_labels(weights, targets, start, ridge=1e-3)[0]).max()) < 100


@pytest.mark.core
def test_without_any_images_weight_the_loss_is_that_of_zero():
    distilled, points, targets = case()
    value = loss_of(KipSpec(ridge=1e9), distilled, points, targets)
    np.testing.assert_allclose(value, (1 - 1 / 3) / 3 / 2, rtol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("strength", [1e-3, 2.0])
def test_a_support_of_as_many_points_as_outputs_reproduces_a_linear_map(strength, float64):
    # Chen et al. (NeurIPS 2024): for W = Q R the points Q^T with targets (1 + lambda) R.
    draw = np.random.RandomState(0)
    weights, points = draw.normal(size=(7, 3)), jnp.asarray(draw.normal(size=(9, 7)))
    q, r = np.linalg.qr(weights)
    # In the dual form and, with rows of zeros, in the primal one.
    for zeros in (0, 6):
        support = jnp.concatenate([jnp.asarray(q.T), jnp.zeros((zeros, 7))])
        targets = jnp.concatenate([jnp.asarray((1 + strength) * r), jnp.zeros((zeros, 3))])
        settings = dict(ridge=strength, ridge_scale="absolute")
        by_features, _ = ridge_predict(support, targets, points, **settings)
        by_kernel, _ = kernel_predict(support @ support.T, targets, points @ support.T, **settings)
        for predicted in (by_features, by_kernel):
            np.testing.assert_allclose(predicted, points @ weights, rtol=1e-9)


def plan_kip(num_pairs=20, **settings):
    return kip.plan("kip", KipSpec(**settings), Sizes(num_pairs, (8, 8, 1), 64, 10, {}))


def test_a_class_takes_one_number_of_the_budget_and_a_learned_label_one_per_class():
    # 20 (64 + 64) numbers hold 39 images with a class each, or 34 with ten numbers each; in both cases three of each class.
    assert [plan_kip(**labels).num_images for labels in ({}, {"learn_labels": True}, {"label_solve": True})] == [30, 30, 30]
    assert plan_kip().stored_scalars == 30 * 65
    assert plan_kip(learn_labels=True).stored_scalars == plan_kip(label_solve=True).stored_scalars == 30 * 74
    assert (plan_kip(images=10).num_images, plan_kip(images=10).stored_scalars) == (10, 650)
    # Five pairs, 640 numbers, hold nine images, six hold eleven; with learned labels ten.
    assert plan_kip(6, learn_labels=True).num_images == 10
    assert plan_kip().layout.target_kind == "labels"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 5}, "the budget of 640 numbers holds 9 images, expected one of each of the 10 classes; raise config.num_pairs"),
        ({"num_pairs": 5, "images": 10}, "holds 9 images, expected one of each of the 10 classes"),
        ({"images": 15}, "images is 15, expected a multiple of the 10 classes"),
        ({"images": 50}, "images is 50, expected at most 39"),
        ({"kernel": "feature"}, "kernel is 'feature', which reads a pool of networks; expected one of fc_ntk, fc_nngp"),
        ({"learn_labels": True, "label_solve": True}, "set one of them to False"),
        ({"kernel": "convnet_ntk", "depth": 4}, "kernel is 'convnet_ntk': pooled_kernel: depth is 4, which pools 8 x 8 pixels to nothing"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_kip(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 2}, "depth is 2, but the kernel 'feature' has no such setting; expected 0"),
        ({"kernel": "conv_ntk", "bias": False}, "bias is False, but the kernel 'conv_ntk' has no such setting; expected True"),
    ],
)
def test_a_setting_that_the_kernel_does_not_have_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        regression.plan("krr_st", RegressionSpec(**settings), Sizes(10, (8, 8, 1), 64, 0, {}))


def test_a_kernel_that_its_rows_would_not_fit_is_refused_before_anything_runs():
    spec = RegressionSpec(kernel="convnet_ntk", views=("identity", "hflip"), view_targets=("stored", "shared"))
    plan = lambda num_pairs: regression.plan("krr_st", spec, Sizes(num_pairs, (28, 28, 1), 64, 0, {}))
    assert plan(54).num_images == 54
    with pytest.raises(InputError, match=r"krr_st.kernel is 'convnet_ntk': pooled_kernel: 120 images .* expected at most 109 images"):
        plan(60)


def test_the_start_has_distinct_images_equally_many_of_each_class():
    labels = np.random.RandomState(0).randint(0, 4, 60)
    chosen = balanced_images("config.methods.kip", 1, 12, labels, 4)
    assert len(set(chosen.tolist())) == 12
    np.testing.assert_array_equal(labels[chosen], np.repeat(np.arange(4), 3))
    assert chosen.tolist() != balanced_images("config.methods.kip", 2, 12, labels, 4).tolist()
    # Of the last class there is one image.
    rare = np.where(np.arange(60) == 7, 3, np.arange(60) % 3)
    with pytest.raises(InputError, match=r"has 12 images, 3 of each class, but class 3 has 1 training images; lower .*images to at most 4"):
        balanced_images("config.methods.kip", 1, 12, rare, 4)


def test_images_alone_move_unless_labels_are_learned():
    distilled, points, targets = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), part) for part in case())
    for learn_labels in (False, True):
        spec = KipSpec(learn_labels=learn_labels)
        state = init_outer(jax.random.key(0), distilled, kernel=kip.make_kernel(spec), optimizer=kip.make_optimizer(spec))
        new, metrics = jax.jit(kip.make_step(spec))(state, points, targets, jax.random.key(1))
        assert float(jnp.abs(new.distilled.images.rows - distilled.images.rows).max()) > 0.03
        assert bool(jnp.any(new.distilled.reprs.rows != distilled.reprs.rows)) == learn_labels
        assert set(metrics) == {"loss", "grad_norm"}
        assert new.pool is None


def test_a_run_makes_sets_without_a_teacher_and_its_steps_lower_the_loss(tmp_path):
    still = KipSpec(images=10, steps=0)
    config = default_config(real=still, solved=replace(still, label_solve=True), learned=KipSpec(images=10, learn_labels=True))
    smoke(config)
    config.update(num_pairs=10, seeds=(0, 1))
    config.outer.update(steps=25, batch_size=64)
    pipeline.run(to_spec(config), tmp_path, "distill")
    assert [path.name.split("-")[0] for path in (tmp_path / "checkpoints").iterdir()] == ["learned"] * 2
    for name, stored in {"real": 650, "solved": 740, "learned": 740}.items():
        folder = tmp_path / "distilled" / name / "seed_1"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["num_images"], manifest["stored_scalars"], manifest["teacher"]) == (10, stored, None)
        labels = load_distilled(folder).reprs.rows[0]
        assert (np.abs(labels - centred_labels(jnp.arange(10), 10)).max() < 1e-6) == (name == "real")
        if name != "learned":
            np.testing.assert_allclose(labels.sum(1), 0, atol=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"][0] for line in lines if line["stage"] == "distill/learned/seeds_1"]
    assert losses[-1] < 0.7 * losses[0]
