import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.methods.class_rows import ClassRows, by_class, fewer_per_class
from ssdd_jax.settings.methods import DsaSpec


def test_rows_are_drawn_class_by_class_without_replacement():
    labels = np.array([1, 0, 1, 2, 1, 1, 0, 1])
    rows = ClassRows(labels, 3, 4)
    np.testing.assert_array_equal(rows.weights, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    seen = set()
    for seed in range(8):
        drawn = np.asarray(rows.draw(jax.random.key(seed)))
        for label, (own, weights) in enumerate(zip(drawn, np.asarray(rows.weights, bool), strict=True)):
            assert len(set(own[weights])) == weights.sum()
            assert (labels[own[weights]] == label).all()
        seen |= set(drawn[1])
    assert seen == {0, 2, 4, 5, 7}
    assert ClassRows(labels, 3, 100).size == 5
    np.testing.assert_array_equal(by_class(jnp.arange(6.0), 3), [[0, 1], [2, 3], [4, 5]])


def test_a_step_that_does_not_fit_is_tried_with_fewer_images_of_a_class():
    found = list(fewer_per_class("config.methods.dsa", DsaSpec(), 10, lambda spec: spec.batch_per_class))
    assert found == [(f"--config.methods.dsa.batch_per_class={size}", size) for size in (5, 2, 1)]
