"""Batches that are read from disk ahead of the steps are those that would be gathered on the device."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.data import Concatenated, OnDisk
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import feed
from ssdd_jax.runtime.encode import encode_to_file, in_batches
from ssdd_jax.runtime.feed import Reader, to_device
from ssdd_jax.runtime.loop import Loop


@pytest.fixture
def tables(tmp_path):
    """Images and targets on disk, twenty rows of which the odd ones are used, and the same on the device."""
    random = np.random.RandomState(0)
    arrays = random.randint(0, 256, (20, 4, 3), np.uint8), random.normal(size=(20, 5)).astype(np.float32)
    for name, array in zip("xy", arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    odd = np.arange(1, 20, 2)
    on_disk = [OnDisk(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), odd) for name in "xy"]
    return on_disk, [jnp.asarray(array[odd]) for array in arrays]


def draw(step, seed):
    rows = jax.random.randint(step_key(seed, Stream.OUTER_STEP, step), (6,), 0, 10)
    return rows, rows[::-1]


def step(state, number, batch, seed):
    images, targets = batch
    moved = 0.9 * state + images.astype(jnp.float32).mean() / 255.0 + jnp.tanh(targets).sum(0) + number
    return moved, {"loss": moved.sum()}


def run(tables, num_steps=7, per_dispatch=1, seeds=(3, 5), state=None, **kwargs):
    state = jnp.zeros((len(seeds), 5)) if state is None else state
    loop = Loop(step, (0,), per_dispatch, draw)
    return loop.run(state, num_steps, (jnp.asarray(seeds),), tables=tables, display=Display(), name="walk", **kwargs)


@pytest.mark.parametrize("per_dispatch", [1, 4])
@pytest.mark.parametrize("seeds", [(3,), (3, 5)])
def test_steps_on_disk_equal_steps_on_the_device_bit_for_bit(tables, per_dispatch, seeds):
    on_disk, on_device = tables
    expected = run(on_device, per_dispatch=per_dispatch, seeds=seeds)
    np.testing.assert_array_equal(run(on_disk, per_dispatch=per_dispatch, seeds=seeds), expected)
    assert float(jnp.abs(expected).sum()) > 0


def test_one_table_on_disk_and_one_on_the_device_is_as_good(tables):
    on_disk, on_device = tables
    np.testing.assert_array_equal(run([on_disk[0], on_device[1]]), run(on_device))


def test_a_run_that_goes_on_reads_the_batches_that_it_would_have_read(tables):
    on_disk, _ = tables
    half = run(on_disk, 4)
    np.testing.assert_array_equal(run(on_disk, 7, state=half, start=4), run(on_disk, 7))


def test_a_dispatch_holds_no_more_steps_than_its_bytes_allow(tables, monkeypatch):
    on_disk, on_device = tables
    bytes_a_step = 2 * 6 * (4 * 3 + 5 * 4)
    monkeypatch.setattr(feed, "MAX_BYTES", 3 * bytes_a_step)
    reader = Reader(lambda number, seeds: jax.vmap(draw, (None, 0))(number, seeds), on_disk, (jnp.asarray([3, 5]),))
    assert reader.max_steps == 3
    np.testing.assert_array_equal(run(on_disk, per_dispatch=5), run(on_device, per_dispatch=3))


def test_no_more_is_read_ahead_than_said_and_the_thread_ends_with_the_loop(tables, monkeypatch):
    on_disk, _ = tables
    read, original = [], Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, first, length: read.append(first) or original(self, first, length))
    reader = Reader(lambda number, seeds: jax.vmap(draw, (None, 0))(number, seeds), on_disk, (jnp.asarray([3]),))
    batches = reader.ahead((i, 1) for i in range(100))
    assert next(batches)[0] == 0
    batches.close()
    assert len(read) <= 1 + feed.READ_AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_an_error_while_reading_reaches_the_loop(tables):
    on_disk, _ = tables

    class Broken(OnDisk):
        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run([Broken(np.zeros((10, 4, 3), np.uint8)), on_disk[1]])


def test_concatenated_rows_are_those_of_the_concatenation(tables):
    on_disk, on_device = tables
    table, whole = Concatenated([on_disk[1], on_disk[1]]), np.concatenate([on_device[1], on_device[1]])
    index = np.array([[0, 19, 3], [10, 9, 0]])
    np.testing.assert_array_equal(table[index], whole[index])
    assert table.shape == whole.shape


def test_rows_in_memory_go_to_the_device_and_rows_on_disk_stay(tables):
    on_disk, _ = tables
    assert to_device(on_disk[0]) is on_disk[0]
    assert isinstance(to_device(np.zeros((2, 3))), jax.Array)


def encode(batch, rows):
    return batch.reshape(len(batch), -1).astype(jnp.float32).sum(1, keepdims=True) + jnp.stack([rows, -rows], 1)


def test_encoding_to_a_file_is_encoding_in_memory_and_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ssdd_jax.runtime.encode.ENCODE_BATCH", 8)
    images, file = np.random.RandomState(0).randint(0, 256, (21, 2, 2, 1), np.uint8), tmp_path / "folder" / "reprs.npy"
    encode_to_file(encode, images, 2, file, Display(), "encode")
    rows = np.arange(21)
    np.testing.assert_array_equal(np.load(file), encode(images, rows))
    assert sorted(path.name for path in file.parent.iterdir()) == ["reprs.npy", "reprs.sha256.json"]
    encode_to_file(lambda *_: pytest.fail("encoded again"), images, 2, file, Display(), "encode")
    np.testing.assert_array_equal(in_batches(lambda batch: batch * 2, images), images * 2)


def test_an_encoding_that_was_cut_off_goes_on_and_has_its_name_only_when_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ssdd_jax.runtime.encode.ENCODE_BATCH", 4)
    monkeypatch.setattr("ssdd_jax.runtime.encode.RECORD_EVERY", 1)
    images, file, seen = np.arange(22, dtype=np.uint8).reshape(22, 1, 1, 1), tmp_path / "reprs.npy", []

    def broken(batch, rows):
        if int(rows[0]) >= 12:
            raise KeyboardInterrupt
        return encode(batch, rows)

    with pytest.raises(KeyboardInterrupt):
        encode_to_file(broken, images, 2, file, Display(), "encode")
    assert not file.exists()
    encode_to_file(lambda batch, rows: seen.append(int(rows[0])) or encode(batch, rows), images, 2, file, Display(), "encode")
    assert seen == [12, 16, 20]
    np.testing.assert_array_equal(np.load(file), encode(images, np.arange(22)))
