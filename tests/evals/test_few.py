from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from ssdd_jax.evals.few import few_label_loss, init_few_label_probe, make_few_label_step

pytestmark = pytest.mark.core

L2 = 1e-2


def problem():
    random = np.random.RandomState(0)
    features = random.normal(size=(60, 5)).astype(np.float32)
    labels = np.argmax(features @ random.normal(size=(5, 3)) + random.normal(size=(60, 3)), 1).astype(np.int32)
    return features, labels


# One program for all, since a line search takes long to compile.
STEP = jax.jit(make_few_label_step(l2=L2))


def solve(features, labels, steps=60):
    state, losses = init_few_label_probe(features.shape[1], 3), []
    for i in range(steps):
        state, metrics = STEP(state, i, jnp.asarray(features), jnp.asarray(labels))
        losses.append(float(metrics["loss"]))
    return state, losses, float(metrics["grad_norm"])


def test_the_probe_reaches_the_minimum_of_the_regularised_loss():
    features, labels = problem()

    def loss64(flat):
        weight, bias = flat[:15].reshape(5, 3), flat[15:]
        logits = features.astype(np.float64) @ weight + bias
        log_norm = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        return np.mean(log_norm - logits[np.arange(60), labels]) + 0.5 * L2 * np.sum(weight**2)

    best = minimize(loss64, np.zeros(18), options={"gtol": 1e-8}).x
    state, losses, grad_norm = solve(features, labels)
    np.testing.assert_allclose(losses[-1], loss64(best), rtol=1e-5)
    # The bias is defined up to a constant on all classes.
    np.testing.assert_allclose(state.params["weight"], best[:15].reshape(5, 3), atol=5e-3)
    assert grad_norm < 1e-3
    assert losses[0] == pytest.approx(np.log(3))
    assert all(after <= before for before, after in pairwise(losses))


def test_the_weight_is_regularised_and_the_bias_is_not():
    features, labels = problem()
    params = {"weight": jnp.ones((5, 3)), "bias": jnp.ones(3)}
    rise = few_label_loss(params, features, labels, 1.0) - few_label_loss(params, features, labels, 0.0)
    np.testing.assert_allclose(rise, 7.5, rtol=1e-5)


def test_it_stays_at_the_minimum_and_finite_with_one_label_a_class():
    features, labels = problem()
    # Each as often as makes sixty rows, whose mean is that of the three.
    rows = np.repeat([int(np.flatnonzero(labels == label)[0]) for label in range(3)], 20)
    state, losses, _ = solve(features[rows], labels[rows], 40)
    assert np.isfinite(losses).all()
    assert np.isfinite(state.params["weight"]).all()
    assert losses[-1] == min(losses)
