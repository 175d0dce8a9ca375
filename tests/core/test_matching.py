import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.krr import finite_difference

from ssdd_jax.core.matching import class_gradient_distance, class_loss, gradient_distance, mean_distance

REAL = np.sin(0.7 * np.arange(18)).reshape(6, 3)
SYNTHETIC = np.cos(0.3 * np.arange(9)).reshape(3, 3)


def apply(params, rows):
    """Return the logits of a network with one hidden layer of four units."""
    return jnp.tanh(rows @ params["w1"] + params["b1"][None]) @ params["w2"] + params["b2"][None]


def toy():
    return {
        "w1": jnp.asarray(np.sin(np.arange(12)).reshape(4, 3).T),
        "b1": jnp.asarray(0.1 * np.cos(np.arange(4))),
        "w2": jnp.asarray(np.cos(np.arange(12)).reshape(3, 4).T),
        "b2": jnp.asarray(0.1 * np.sin(np.arange(3))),
    }


@jax.jit
def distances(synthetic):
    of = lambda label: class_gradient_distance(
        apply, toy(), jnp.asarray(REAL[2 * label : 2 * label + 2]), synthetic[label][None], jnp.asarray(label)
    )
    return jnp.stack([of(label) for label in range(3)])


@pytest.mark.core
def test_the_distances_of_classes_have_their_known_values(float64):
    found = distances(jnp.asarray(SYNTHETIC))
    np.testing.assert_allclose(found, [2.071407694818247, 9.310163667233628, 1.819219580567935], rtol=1e-9)
    np.testing.assert_allclose(found.sum(), 13.200790942619811, rtol=1e-9)
    # Gradients that are pooled over the classes first are another method.
    classes = np.repeat(np.arange(3), 2)
    both = ((jnp.asarray(REAL), classes), (jnp.asarray(SYNTHETIC), np.arange(3)))
    total = lambda params, rows, labels: sum(class_loss(apply, params, rows[labels == c], jnp.asarray(c)) / 3 for c in range(3))
    pooled = [jax.grad(total)(toy(), rows, labels) for rows, labels in both]
    np.testing.assert_allclose(gradient_distance(*pooled), 7.145612720313638, rtol=1e-9)


@pytest.mark.core
def test_the_second_order_gradient_is_that_of_finite_differences(float64):
    total = lambda synthetic: distances(synthetic).sum()
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(SYNTHETIC)), finite_difference(total, SYNTHETIC), rtol=1e-5, atol=1e-7)


@pytest.mark.core
def test_a_distance_knows_directions_alone(float64):
    gradient = jax.grad(class_loss, argnums=1)(apply, toy(), jnp.asarray(REAL), jnp.asarray(1))
    rows = 4 + 3
    scaled = lambda factor: jax.tree.map(lambda leaf: factor * leaf, gradient)
    np.testing.assert_allclose(gradient_distance(gradient, scaled(3.0)), 0, atol=1e-3)
    np.testing.assert_allclose(gradient_distance(gradient, scaled(-2.0)), 2 * rows, atol=1e-3)
    # Biases count nothing.
    other = {**gradient, "b1": -gradient["b1"], "b2": gradient["b2"] + 5}
    np.testing.assert_array_equal(gradient_distance(gradient, other), gradient_distance(gradient, gradient))
    # The order of outputs is no direction.
    order = np.array([2, 0, 3, 1])
    permuted = [{**g, "w1": g["w1"][:, order]} for g in (gradient, scaled(-2.0))]
    np.testing.assert_allclose(gradient_distance(*permuted), gradient_distance(gradient, scaled(-2.0)), rtol=1e-12)
    # Far below the root of 1e-6 nothing matches.
    np.testing.assert_allclose(gradient_distance(scaled(1e-8), scaled(1e-8)), rows, atol=1e-3)


@pytest.mark.core
def test_a_gradient_of_zero_is_at_distance_one_and_has_a_finite_gradient():
    zero = {"w": jnp.zeros((3, 2))}
    value, gradient = jax.value_and_grad(lambda g: gradient_distance({"w": jnp.ones((3, 2))}, g))(zero)
    assert value == 2
    assert np.isfinite(gradient["w"]).all()


@pytest.mark.core
def test_rows_of_weight_0_are_none(float64):
    filled = jnp.asarray(np.concatenate([REAL[:2], 7 * np.ones((2, 3))]))
    weights, label, ours = jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.asarray(0), jnp.asarray(SYNTHETIC[:1])
    found = class_gradient_distance(apply, toy(), filled, ours, label, weights)
    np.testing.assert_allclose(found, distances(jnp.asarray(SYNTHETIC))[0], rtol=1e-12)
    np.testing.assert_allclose(mean_distance(filled, ours, weights), mean_distance(filled[:2], ours), rtol=1e-12)


@pytest.mark.core
def test_the_gradient_of_a_mean_distance_is_in_closed_form(float64):
    real, ours = jnp.asarray(REAL), jnp.asarray(SYNTHETIC)
    expected = 2 / len(ours) * (ours.mean(0) - real.mean(0))
    np.testing.assert_allclose(jax.grad(mean_distance, argnums=1)(real, ours), np.tile(expected, (3, 1)), rtol=1e-12)
    np.testing.assert_array_equal(jax.grad(mean_distance)(real, ours), 0)
