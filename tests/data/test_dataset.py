"""Properties of the functions on datasets: rows on disk, validation rows, channels, statistics, digests."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ssdd_jax.data.dataset as dataset_module
from ssdd_jax.data import OnDisk, channel_statistics, select_rows, take_rows, validation_rows
from ssdd_jax.data.dataset import array_digest, convert_channels
from ssdd_jax.errors import DataError, InputError


def random_images(count=50, shape=(6, 5, 3), seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, *shape)).astype(np.uint8)


def on_disk(folder, array):
    np.save(folder / "array.npy", array)
    return np.load(folder / "array.npy", mmap_mode="r")


def assert_refused(match, call, *args, error=InputError):
    with pytest.raises(error, match=match) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


INDICES = [
    slice(None),
    slice(3, 9),
    slice(0, 0),
    slice(-4, None),
    slice(None, None, 7),
    np.array([4, 0, 4, 19]),
    np.array([], int),
    np.array([-1]),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("rows", [None, np.arange(20), np.array([9, 3, 3, 41, 0, *range(25, 40)])], ids=["all", "first", "some"])
def test_rows_are_those_of_the_array(tmp_path, rows, index):
    images = random_images()
    expected = images if rows is None else images[rows]
    found = OnDisk(on_disk(tmp_path, images), rows)
    assert (len(found), found.shape, found.dtype, found.ndim, found.nbytes) == (
        len(expected),
        expected.shape,
        expected.dtype,
        expected.ndim,
        expected.nbytes,
    )
    np.testing.assert_array_equal(found[index], expected[index])
    np.testing.assert_array_equal(found.select(np.array([5, 1, 5]))[:], expected[[5, 1, 5]])


def test_rows_are_copies(tmp_path):
    images = random_images()
    rows = OnDisk(on_disk(tmp_path, images))
    first = rows[:10]
    assert type(first) is np.ndarray
    first[:] = 0
    np.testing.assert_array_equal(rows[:10], images[:10])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_keep_nothing_in_memory(tmp_path):
    def mapped_mb():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) / 1024

    array = on_disk(tmp_path, np.ones((64, 1024, 1024), np.uint8))
    before = mapped_mb()
    rows = OnDisk(array)
    assert sum(int(rows[start : start + 8].sum()) for start in range(0, 64, 8)) == array.size
    assert mapped_mb() - before < 16
    # The array itself would keep all of it.
    assert int(array.sum()) == array.size
    assert mapped_mb() - before > 48


def test_taken_rows_are_in_memory_or_stay_on_disk(tmp_path):
    images, some = random_images(), np.array([7, 2, 30])
    array = on_disk(tmp_path, images)
    for rows in (None, some):
        expected = images if rows is None else images[rows]
        held, left = take_rows(array, rows, in_memory=True), take_rows(array, rows, in_memory=False)
        assert type(held) is np.ndarray
        assert isinstance(left, OnDisk)
        for taken in (held, left):
            np.testing.assert_array_equal(taken[:], expected)
            np.testing.assert_array_equal(select_rows(taken, np.array([2, 0]))[:], expected[[2, 0]])
        assert isinstance(select_rows(left, np.array([2, 0])), OnDisk)
        (tmp_path / "array.npy").write_bytes(b"")
        np.testing.assert_array_equal(held, expected)
        array = on_disk(tmp_path, images)
    assert type(take_rows(images, some, in_memory=False)) is np.ndarray


@pytest.mark.parametrize(("count", "fraction", "num_held"), [(1000, 0.1, 100), (301, 0.25, 75), (2, 0.5, 1)])
def test_validation_rows_are_a_partition_in_order(count, fraction, num_held):
    kept, held = validation_rows(count, fraction)
    assert len(held) == num_held
    assert kept.dtype == held.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(count))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()


def test_validation_rows_depend_on_the_seed_alone():
    first, again, other = (validation_rows(1000, 0.1, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    # The stream is frozen by NumPy: other numbers here would silently change every reported validation score.
    np.testing.assert_array_equal(first[:5], [1, 14, 27, 31, 45])


@given(st.lists(st.integers(0, 9), min_size=4, max_size=60), st.floats(0.05, 0.9), st.integers(0, 99))
def test_validation_rows_keep_groups_together_and_hold_out_no_more_than_was_asked(groups, fraction, seed):
    groups = np.array(groups)
    try:
        kept, held = validation_rows(len(groups), fraction, seed, groups)
    except InputError:
        # Every group is larger than what was to be held out, or there is nothing to hold out.
        assert np.bincount(groups)[groups].min() > round(fraction * len(groups)) or round(fraction * len(groups)) == len(groups)
        return
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(groups)))
    assert not set(groups[kept]) & set(groups[held])
    missing = round(fraction * len(groups)) - len(held)
    assert missing >= 0
    # None of those that remain would have had room.
    assert not missing or min(np.count_nonzero(groups == group) for group in set(groups[kept])) > missing


def test_validation_rows_of_images_that_all_differ_are_those_without_groups():
    for count, fraction, seed in ((1000, 0.1, 0), (301, 0.25, 7)):
        for with_groups, without in zip(
            validation_rows(count, fraction, seed, np.arange(count)), validation_rows(count, fraction, seed), strict=True
        ):
            np.testing.assert_array_equal(with_groups, without)
    assert_refused("0.1 of 50 train images, 1 of them distinct, holds out 0", validation_rows, 50, 0.1, 0, np.zeros(50, int))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_validation_fraction_out_of_range_is_refused(fraction):
    assert_refused("validation fraction is .*, expected more than 0 and less than 1", validation_rows, 50, fraction)


def test_validation_rows_refuse_empty_parts_and_bad_seeds():
    assert_refused("0.001 of 50 train images holds out 0, expected at least 1", validation_rows, 50, 0.001)
    assert_refused("0.999 of 50 train images holds out 50, expected at least 1", validation_rows, 50, 0.999)
    for seed in (-1, 2**32):
        assert_refused(f"validation seed is {seed}, expected 0", validation_rows, 50, 0.1, seed)
    assert len(validation_rows(50, 0.1, 2**32 - 1)[1]) == 5


def test_grey_becomes_three_equal_channels_and_colour_its_luma_as_pillow_has_them():
    colour = random_images()
    grey = convert_channels(colour, 1)
    assert (grey.shape, grey.dtype) == ((50, 6, 5, 1), np.uint8)
    np.testing.assert_array_equal(grey[..., 0], np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour]))
    again = convert_channels(grey, 3)
    for channel in range(3):
        np.testing.assert_array_equal(again[..., channel], grey[..., 0])
    assert convert_channels(colour, 3) is colour


def test_other_numbers_of_channels_are_refused():
    two = random_images(shape=(6, 5, 2))
    assert_refused("have 2 channels and 3 are asked for, expected 1 or 3", convert_channels, two, 3, error=DataError)
    assert_refused("have 3 channels and 4 are asked for", convert_channels, random_images(), 4, error=DataError)
    assert convert_channels(two, 2) is two


@pytest.mark.parametrize("block_images", [1, 7, 50, 4096])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_channel_statistics_equal_numpy_float64(tmp_path, monkeypatch, block_images, is_on_disk):
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", block_images * 6 * 5 * 3)
    images = random_images()
    images[..., 1] //= 3
    mean, std = channel_statistics(OnDisk(on_disk(tmp_path, images)) if is_on_disk else images)
    scaled = images.astype(np.float64) / 255.0
    assert mean.dtype == std.dtype == np.float64
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-13)


def test_channel_statistics_of_a_constant_channel_are_exact():
    mean, std = channel_statistics(np.full((3, 2, 2, 1), 51, np.uint8))
    np.testing.assert_allclose(mean, [0.2], rtol=1e-15)
    np.testing.assert_allclose(std, [0.0], atol=1e-15)


def test_channel_statistics_refuse_other_arrays():
    images = random_images()
    assert_refused("images are float32 .*, expected uint8", channel_statistics, images.astype(np.float32), error=DataError)
    assert_refused(r"images are uint8 \(6, 5, 3\), expected", channel_statistics, images[0], error=DataError)
    assert_refused("expected uint8 .*, not empty", channel_statistics, images[:0], error=DataError)


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**25])
def test_a_digest_is_that_of_the_bytes_however_they_lie(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(dataset_module, "_BLOCK_BYTES", block_bytes)
    images, labels = random_images(), np.arange(50, dtype=np.int32) - 3
    strided = np.asfortranarray(images)
    assert not strided.flags.c_contiguous
    expected = hashlib.sha256(images.tobytes()).hexdigest()
    assert array_digest(images) == array_digest(strided) == array_digest(OnDisk(on_disk(tmp_path, images))) == expected
    assert array_digest(labels) == array_digest(labels.astype(">i4")) == hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest()
    images[25, 3, 2, 1] ^= 1
    assert array_digest(images) != expected
