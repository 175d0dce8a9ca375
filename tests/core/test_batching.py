import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.core.batching import map_in_chunks, sum_in_chunks

pytestmark = pytest.mark.core


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("chunk_size", [0, 1, 4, 5, 11, 20])
@pytest.mark.parametrize("remat", [False, True])
def test_rows_in_parts_have_the_values_and_gradients_of_all_at_once(chunk_size, remat):
    rows, weights = draw(11, 3, 2), draw(2, 4, seed=1)
    fn = lambda rows: jnp.tanh(rows @ weights).sum(1)
    parts = lambda rows: map_in_chunks(fn, rows, chunk_size, remat=remat)
    np.testing.assert_allclose(parts(rows), fn(rows), rtol=1e-5, atol=1e-6)
    gradient = lambda fn: jax.grad(lambda rows: jnp.sum(fn(rows) ** 2))(rows)
    np.testing.assert_allclose(gradient(parts), gradient(fn), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 11, 20])
def test_a_sum_over_parts_has_the_value_and_the_gradients_of_the_whole(chunk_size):
    rows, weights = draw(11, 3, 2), draw(11, 4, seed=1)
    whole = lambda rows, weights: jnp.einsum("nij,nk->ijk", jnp.sin(rows), weights)
    parts = lambda rows, weights: sum_in_chunks(whole, (rows, weights), chunk_size)
    np.testing.assert_allclose(parts(rows, weights), whole(rows, weights), rtol=1e-5, atol=1e-6)
    gradients = lambda fn: jax.grad(lambda *arrays: jnp.sum(fn(*arrays) ** 2), (0, 1))(rows, weights)
    for mine, theirs in zip(gradients(parts), gradients(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_parts_run_one_after_the_other_and_remat_keeps_none_of_their_activations(compiled_well):
    rows, weights = jnp.ones((512, 64)), jnp.ones((64, 4096))

    def temporary(chunk_size, remat):
        fn = lambda rows: jnp.tanh(rows @ weights) @ weights.T
        loss = lambda rows: jnp.sum(map_in_chunks(fn, rows, chunk_size, remat=remat) ** 2)
        return jax.jit(jax.grad(loss)).lower(rows).compile(compiled_well).memory_analysis().temp_size_in_bytes

    # 512 x 4096 activations of four bytes are 8.4 MB, those of a part 0.5.
    assert temporary(32, remat=True) < 3e6 < 8e6 < temporary(32, remat=False)
    assert temporary(0, remat=False) > 8e6
