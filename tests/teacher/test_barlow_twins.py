from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.evals.probe import init_probe
from ssdd_jax.nets import make_learner
from ssdd_jax.settings.augment import AugmentSpec
from ssdd_jax.teacher.barlow_twins import Projector, barlow_twins_loss, init_teacher, make_teacher_step

pytestmark = pytest.mark.core


def oracle(z1, z2, off_diagonal, scale):
    """Zbontar et al. (2021), equation 1, in float64 and with loops."""
    z1, z2 = (np.asarray(z, np.float64) for z in (z1, z2))
    z1, z2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    total = 0.0
    for i in range(z1.shape[1]):
        for j in range(z2.shape[1]):
            c = (z1[:, i] * z2[:, j]).mean()
            total += (c - 1) ** 2 if i == j else off_diagonal * c**2
    return scale * total


def test_the_loss_is_the_formulas(key):
    z1, z2 = 2 * jax.random.normal(key, (20, 6)) + 1, jax.random.normal(jax.random.fold_in(key, 1), (20, 6))
    np.testing.assert_allclose(barlow_twins_loss(z1, z2, off_diagonal=0.1, scale=0.3), oracle(z1, z2, 0.1, 0.3), rtol=1e-5)


def test_equal_uncorrelated_embeddings_have_no_loss():
    z = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert barlow_twins_loss(z, z) < 1e-8
    assert barlow_twins_loss(z, -z) > 0.7


def test_pretraining_lowers_the_loss_and_moves_every_parameter(key):
    learner = make_learner("convnet", (4, 8), (8, 8, 3), 0, pooled=True)
    optimizer, projector = optax.adam(1e-2), Projector(8, 1)
    step = jax.jit(
        make_teacher_step(
            encoder=learner,
            projector=projector,
            optimizer=optimizer,
            views=(AugmentSpec(min_crop_scale=0.5, hue=0.0), AugmentSpec(min_crop_scale=0.5, hue=0.0, blur=0.5, solarize=0.2)),
            normalize=lambda images: images - 0.5,
        )
    )
    start = state = jax.jit(lambda k: init_teacher(k, learner, projector, 8, optimizer))(key)
    images = jax.random.uniform(key, (32, 8, 8, 3)) * jnp.linspace(0, 1, 32)[:, None, None, None]
    losses = []
    for i in range(30):
        state, metrics = step(state, images, jax.random.fold_in(key, i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    for old, new in zip(jax.tree.leaves((start.encoder, start.projector)), jax.tree.leaves((state.encoder, state.projector)), strict=True):
        assert not np.array_equal(old, new)


def test_a_step_draws_by_its_key_alone_and_averages_the_statistics_of_both_views_in_turn(key):
    learner, projector, optimizer = make_learner("convnet", (4,), (4, 4, 1), 0, pooled=True), Projector(6, 1), optax.sgd(0.1)
    flip = AugmentSpec(min_crop_scale=1.0, jitter=0.0, gray=0.0)
    settings = {"encoder": learner, "projector": projector, "optimizer": optimizer, "views": (flip, flip)}
    step = jax.jit(make_teacher_step(**settings, normalize=lambda x: x))
    state = jax.jit(lambda k: init_teacher(k, learner, projector, 4, optimizer))(key)
    images = jax.random.uniform(key, (16, 4, 4, 1))
    first, again, other = (step(state, images, jax.random.key(seed))[0].encoder for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))

    # Constant images look the same in both views: two averages of 0.9 old + 0.1 new leave 0.81 of the start, which is 0.
    constant = jnp.ones_like(images)
    conv = state.encoder["params"]["Conv_0"]["Conv_0"]
    activations = jax.lax.conv_general_dilated(constant, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = 0.19 * (np.asarray(activations).mean((0, 1, 2)) + np.asarray(conv["bias"]))
    after = step(state, constant, key)[0].encoder["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-5)


def test_the_online_probe_learns_from_the_labels_and_the_encoder_never_sees_them(key):
    learner, projector = make_learner("convnet", (4,), (4, 4, 1), 0, pooled=True), Projector(6, 1)
    optimizer, probe_optimizer = optax.sgd(0.01), optax.sgd(0.5)
    view = AugmentSpec(min_crop_scale=1.0, jitter=0.0, gray=0.0)
    settings = {"encoder": learner, "projector": projector, "optimizer": optimizer, "views": (view, view)}
    step = jax.jit(make_teacher_step(**settings, normalize=lambda x: x, probe_optimizer=probe_optimizer))
    labels = jnp.arange(32) % 2
    images = jax.random.uniform(key, (32, 4, 4, 1)) * 0.3 + 0.5 * labels[:, None, None, None]
    # All scores are equal at first, so that half of the labels are met.
    probe = jax.tree.map(jnp.zeros_like, init_probe(key, 4, 2, probe_optimizer))
    watched = jax.jit(lambda k: init_teacher(k, learner, projector, 4, optimizer, probe))(key)
    alone, accuracies = replace(watched, probe=None), []
    for i in range(40):
        draw = jax.random.fold_in(key, i)
        watched, metrics = step(watched, images, draw, labels)
        alone, _ = step(alone, images, draw)
        accuracies.append(float(metrics["probe_accuracy"]))
    assert accuracies[0] == 0.5
    assert np.mean(accuracies[-5:]) > 0.9
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), watched.encoder, alone.encoder)
