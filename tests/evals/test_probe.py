import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.evals.linear import probe_steps
from ssdd_jax.evals.probe import accuracy, init_probe, label_subset, probe_logits

pytestmark = pytest.mark.core


def toy(num_rows, seed):
    random = np.random.RandomState(seed)
    labels = random.randint(0, 3, num_rows)
    features = 2 * np.eye(3)[labels] + 0.3 * random.normal(size=(num_rows, 3))
    return jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)


def test_learns_a_separable_toy(key):
    features, labels = toy(60, 0)
    optimizer = optax.sgd(0.2, 0.9)
    state, steps = init_probe(key, 3, 3, optimizer), probe_steps(optimizer)
    step, schedule = jax.jit(steps.step), batch_schedule(key, 60, 16, 60)
    losses = []
    for i in range(60):
        of_features, of_labels = steps.draw(i, schedule)
        state, metrics = step(state, i, (features[of_features], labels[of_labels]), schedule)
        losses.append(float(metrics["loss"]))
    unseen, unseen_labels = toy(40, 1)
    assert float(accuracy(probe_logits(state.params, unseen), unseen_labels)) == 1.0
    assert losses[-1] < 0.1 < losses[0]


def test_a_step_is_sgd_on_the_cross_entropy_of_its_batch(key):
    features, labels = toy(12, 0)
    optimizer = optax.sgd(0.5)
    state, schedule, steps = init_probe(key, 3, 3, optimizer), jnp.array([[0, 1, 2], [7, 3, 9]]), probe_steps(optimizer)
    rows, same = (np.asarray(drawn) for drawn in steps.draw(1, schedule))
    assert rows.tolist() == same.tolist() == [7, 3, 9]
    after, metrics = steps.step(state, 1, (features[rows], labels[rows]), schedule)
    x, y = np.asarray(features, np.float64)[rows], np.eye(3)[np.asarray(labels)[rows]]
    weight, bias = (np.asarray(state.params[name], np.float64) for name in ("weight", "bias"))
    scores = np.exp(x @ weight + bias)
    shares = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(metrics["loss"], -np.mean(np.log(shares[y == 1])), rtol=1e-5)
    np.testing.assert_allclose(after.params["weight"], weight - 0.5 * x.T @ (shares - y) / 3, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.params["bias"], bias - 0.5 * (shares - y).mean(0), rtol=1e-4, atol=1e-6)


def test_a_probe_starts_as_a_linear_layer_of_pytorch(key):
    params = init_probe(key, 100, 50, optax.sgd(0.1)).params
    assert params["weight"].shape == (100, 50)
    for leaf in params.values():
        assert 0.09 < float(jnp.abs(leaf).max()) <= 0.1


def test_accuracy_is_the_share_of_rows_whose_largest_score_is_the_labels():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    assert float(accuracy(logits, jnp.array([1, 0, 0, 0]))) == 0.75


LABELS = np.repeat([0, 1, 2], [100, 40, 3])


@pytest.mark.parametrize(
    ("fraction", "at_least", "counts"),
    [(0.1, 1, [10, 4, 1]), (0.1, 5, [10, 5, 3]), (0.0, 2, [2, 2, 2]), (1.0, 1, [100, 40, 3]), (0.25, 0, [25, 10, 1])],
)
def test_a_label_subset_takes_its_share_of_every_class(key, fraction, at_least, counts):
    shuffled = np.random.RandomState(0).permutation(LABELS)
    rows = label_subset(key, shuffled, fraction, at_least)
    np.testing.assert_array_equal(np.bincount(shuffled[rows], minlength=3), counts)
    np.testing.assert_array_equal(rows, np.unique(rows))


def test_a_label_subset_depends_on_the_key_and_grows_by_adding(key):
    small, again, other = (
        label_subset(key, LABELS, 0.1, 1),
        label_subset(key, LABELS, 0.1, 1),
        label_subset(jax.random.key(1), LABELS, 0.1, 1),
    )
    np.testing.assert_array_equal(small, again)
    assert not np.array_equal(small, other)
    assert set(small) < set(label_subset(key, LABELS, 0.5, 1))
