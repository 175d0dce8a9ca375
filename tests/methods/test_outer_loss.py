from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.losses import nearness_loss
from ssdd_jax.methods.outer_loss import PERPLEXITY, WHITENING_FLOOR, make_loss, temperature_of
from ssdd_jax.settings.presets import PRESETS

REPRS = np.random.RandomState(0).normal(size=(300, 6)).astype(np.float32) * np.array([5, 3, 2, 1, 0.5, 0.1], np.float32)
INPUTS = SimpleNamespace(train_reprs=lambda: REPRS, repr_pca=lambda count: fit_pca(jnp.asarray(REPRS), count), num_train=len(REPRS))


def test_whitening_weighs_an_error_by_the_variance_along_it():
    loss, (variances, directions) = make_loss("whitened", INPUTS), np.linalg.eigh(np.cov(REPRS.T, bias=True))
    for variance, direction in zip(variances, directions.T, strict=True):
        error = loss(jnp.asarray(REPRS[:9] + direction[None], jnp.float32), jnp.asarray(REPRS[:9]))
        np.testing.assert_allclose(error, 1 / (variance + WHITENING_FLOOR * variances.mean()) / 6, rtol=1e-3)


@pytest.mark.parametrize("name", ["squared", "whitened", "centres"])
def test_a_loss_is_zero_at_the_targets_and_pulls_towards_them(name):
    loss, targets = make_loss(name, INPUTS), jnp.asarray(REPRS[:50])
    moved = targets + 0.1 * jnp.asarray(REPRS[50:100])
    np.testing.assert_allclose(loss(targets, targets), 0.0, atol=1e-6)
    value, gradient = jax.value_and_grad(loss)(moved, targets)
    assert value > 1e-4
    assert loss(moved - 0.1 * gradient / jnp.abs(gradient).max(), targets) < value
    assert (name == "squared") == np.allclose(value, np.mean((moved - targets) ** 2), rtol=1e-5)


def test_representations_are_as_undecided_as_was_asked():
    centres = jnp.asarray(REPRS[:40])
    temperature = temperature_of(jnp.asarray(REPRS), centres)
    near = jax.nn.softmax(-np.sum((REPRS[:, None] - centres[None]) ** 2, -1) / temperature)
    entropy = -np.sum(near * np.log(np.maximum(near, 1e-30)), -1).mean()
    np.testing.assert_allclose(np.exp(entropy), PERPLEXITY, rtol=1e-2)
    # Fewer centres than that: undecided among most of them.
    assert np.isfinite(temperature_of(jnp.asarray(REPRS), centres[:3]))


def test_nearness_to_two_centres_is_a_logistic_regression():
    centres, outputs, targets = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([[0.3, 7.0]]), jnp.array([[-0.2, 1.0]])
    p, q = (1 / (1 + np.exp(-4 * x / 2.0)) for x in (0.3, -0.2))
    wanted = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    np.testing.assert_allclose(nearness_loss(outputs, targets, centres, jnp.asarray(2.0)), wanted, rtol=1e-5)


def test_a_set_is_the_mean_over_the_last_steps(distil):
    spec = replace(PRESETS["krr_st"], steps=4)
    first, _ = distil(spec, "last")
    kept = [distil(replace(spec, averaged=share), str(share))[0].images.codes for share in (0.25, 0.5)]
    np.testing.assert_allclose(kept[0], first.images.codes, atol=1e-6)
    # The last set and the mean of two are half the last step apart.
    assert 1e-5 < np.abs(kept[1] - first.images.codes).max() <= 0.5 * spec.learning_rate


def test_settings_of_the_loss_and_the_mean_go_on_with_equal_bits(goes_on_with_equal_bits):
    goes_on_with_equal_bits(replace(PRESETS["ours"], steps=4, loss="centres", averaged=0.5, joint=0.5))
