import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax.core.batching import batch_schedule, batches_per_epoch

pytestmark = pytest.mark.core


@given(num_rows=st.integers(1, 12), batch_size=st.integers(1, 15))
@settings(max_examples=8, deadline=None)
def test_an_epoch_covers_every_row_once_and_fills_up_from_its_beginning(num_rows, batch_size):
    per_epoch = batches_per_epoch(num_rows, batch_size)
    schedule = np.asarray(batch_schedule(jax.random.key(0), num_rows, batch_size, 2 * per_epoch))
    size = min(batch_size, num_rows)
    assert schedule.shape == (2 * per_epoch, size)
    assert (per_epoch - 1) * size < num_rows <= per_epoch * size
    for epoch in schedule.reshape(2, -1):
        np.testing.assert_array_equal(np.sort(epoch[:num_rows]), np.arange(num_rows))
        np.testing.assert_array_equal(epoch[num_rows:], epoch[: per_epoch * size - num_rows])


def test_epochs_are_permuted_afresh_and_by_the_key_alone(key):
    first, again = (np.asarray(batch_schedule(key, 10, 5, 4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:2], first[2:])
    assert not np.array_equal(first, batch_schedule(jax.random.key(1), 10, 5, 4))


def test_a_shorter_schedule_is_the_beginning_of_a_longer_one(key):
    np.testing.assert_array_equal(batch_schedule(key, 10, 3, 5), batch_schedule(key, 10, 3, 11)[:5])
