import jax
import numpy as np
import pytest

from ssdd_jax.rng import Stream, step_key

pytestmark = pytest.mark.core

# A stream's number is part of every published result: this list only grows.
STREAMS = [
    "TEACHER_INIT",
    "TEACHER_STEP",
    "DISTILLED_INIT",
    "POOL_INIT",
    "POOL_WARM_UP",
    "OUTER_STEP",
    "NETWORKS",
    "STUDENT_INIT",
    "STUDENT_STEP",
    "PROBE_INIT",
    "PROBE_STEP",
    "LABEL_SUBSET",
    "ONLINE_PROBE",
    "FINETUNE_INIT",
    "FINETUNE_STEP",
]


def test_published_streams_keep_their_numbers():
    assert [Stream(number).name for number in range(len(STREAMS))] == STREAMS


def test_every_seed_stream_and_step_has_its_own_key():
    keys = {
        tuple(np.asarray(jax.random.key_data(step_key(seed, stream, step))).tolist())
        for seed in (0, 1)
        for stream in Stream
        for step in (0, 1, 1000)
    }
    assert len(keys) == 2 * len(Stream) * 3


def test_the_key_is_the_seed_folded_with_stream_and_step():
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 5), 7)
    np.testing.assert_array_equal(jax.random.key_data(step_key(3, Stream.OUTER_STEP, 7)), jax.random.key_data(expected))


def test_a_traced_seed_and_step_give_the_same_key():
    traced = jax.jit(lambda seed, step: jax.random.key_data(step_key(seed, Stream.OUTER_STEP, step)))
    np.testing.assert_array_equal(traced(3, 7), jax.random.key_data(step_key(3, Stream.OUTER_STEP, 7)))
