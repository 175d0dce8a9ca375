import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.teacher.lars import lars

pytestmark = pytest.mark.core

RATES = [0.3, 0.1, 0.2]
ETA, DECAY, MOMENTUM = 0.02, 1e-2, 0.9


def oracle(weight, bias, grads):
    """The formula in float64, one parameter after the other."""
    buffers = [np.zeros_like(weight), np.zeros_like(bias)]
    params = [weight.copy(), bias.copy()]
    for rate, (weight_grad, bias_grad) in zip(RATES, grads, strict=True):
        w_norm, g_norm = np.linalg.norm(params[0]), np.linalg.norm(weight_grad)
        ratio = min(ETA * w_norm / (g_norm + DECAY * w_norm + 1e-8) / rate, 1.0)
        for i, direction in enumerate((ratio * (weight_grad + DECAY * params[0]), bias_grad)):
            buffers[i] = MOMENTUM * buffers[i] + direction
            params[i] = params[i] - rate * buffers[i]
    return params


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_it_equals_the_formula_clipped_and_not(size):
    random = np.random.RandomState(0)
    weight, bias = random.normal(size=(3, 4)), random.normal(size=4)
    # A small gradient would be enlarged beyond the rate: there the ratio is cut at one.
    grads = [(size * random.normal(size=(3, 4)), random.normal(size=4)) for _ in RATES]
    schedule = lambda count: jnp.asarray(RATES)[count]
    optimizer = lars(schedule, weight_decay=DECAY, eta=ETA, momentum=MOMENTUM)
    params = {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    state = optimizer.init(params)
    for weight_grad, bias_grad in grads:
        updates = {"weight": jnp.asarray(weight_grad, jnp.float32), "bias": jnp.asarray(bias_grad, jnp.float32)}
        updates, state = optimizer.update(updates, state, params)
        params = optax.apply_updates(params, updates)
    expected = oracle(weight, bias, grads)
    np.testing.assert_allclose(params["weight"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(params["bias"], expected[1], rtol=1e-5)


def test_zero_parameters_zero_gradients_and_a_zero_rate_stay_finite():
    optimizer = lars(lambda count: jnp.where(count == 0, 0.3, 0.0), weight_decay=DECAY)
    params = {"zero": jnp.zeros((2, 2)), "still": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update({"zero": jnp.ones((2, 2)), "still": jnp.zeros((2, 2))}, state, params)
        params = optax.apply_updates(params, updates)
    assert all(np.isfinite(leaf).all() for leaf in params.values())
    # Without a gradient nothing moves, not even by decay, as in solo-learn.
    np.testing.assert_array_equal(params["still"], np.ones((2, 2)))
    np.testing.assert_allclose(params["zero"], -0.3 * np.ones((2, 2)), rtol=1e-6)
