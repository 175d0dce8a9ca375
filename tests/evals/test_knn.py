import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.evals import protocol
from ssdd_jax.evals.knn import knn_predict, run
from ssdd_jax.evals.protocol import Encoded, Readout, Tools
from ssdd_jax.settings.evaluation import KnnSpec

pytestmark = pytest.mark.core


def test_the_vote_equals_a_loop_in_float64():
    random = np.random.RandomState(0)
    train, labels, queries = random.normal(size=(40, 6)), random.randint(0, 4, 40), random.normal(size=(25, 6))
    expected = []
    for query in queries:
        cosines = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        votes = np.zeros(4)
        for i in np.argsort(-cosines)[:7]:
            votes[labels[i]] += np.exp(cosines[i] / 0.1)
        expected.append(np.argmax(votes))
    arrays = (jnp.asarray(train, jnp.float32), jnp.asarray(labels), jnp.asarray(queries, jnp.float32))
    np.testing.assert_array_equal(knn_predict(*arrays, num_classes=4, num_neighbors=7, temperature=0.1), expected)


def test_one_neighbour_is_the_nearest_and_more_than_there_are_is_all():
    train, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), jnp.array([0, 1, 1])
    queries = jnp.array([[5.0, 0.1], [0.0, 0.5]])
    np.testing.assert_array_equal(knn_predict(train, labels, queries, num_classes=2, num_neighbors=1), [0, 1])
    # With a high temperature all weights are equal and the majority wins.
    np.testing.assert_array_equal(knn_predict(train, labels, queries, num_classes=2, num_neighbors=9, temperature=1e6), [1, 1])


def test_a_low_temperature_and_a_zero_query_stay_finite():
    train, labels = jnp.eye(3), jnp.arange(3)
    predicted = knn_predict(train, labels, jnp.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), num_classes=3, temperature=1e-4)
    assert int(predicted[1]) == 1


@pytest.mark.parametrize("part_bytes", [1, 100, 10_000])
def test_the_nearest_of_some_rows_at_a_time_are_those_of_all(part_bytes, monkeypatch):
    random = np.random.RandomState(1)
    train, queries, labels = random.normal(size=(50, 6)), random.normal(size=(30, 6)), random.randint(0, 4, 50)
    encoded = Encoded(*(rows.astype(np.float32) for rows in (train, queries, train, queries)))
    predicted = knn_predict(*map(jnp.asarray, (encoded.train_reprs, labels, encoded.eval_reprs)), num_classes=4, num_neighbors=7)
    # Truths that the plain vote gets right: any other vote would be counted as wrong.
    monkeypatch.setattr(protocol, "PART_BYTES", part_bytes)
    found = run(KnnSpec(neighbors=7), Readout((0,), [encoded], labels, np.asarray(predicted), 4), Tools())
    assert found == {"knn": [1.0]}
