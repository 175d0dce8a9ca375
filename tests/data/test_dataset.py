"""Properties of the in-memory dataset: validation, splits, padding, statistics, fingerprint."""

import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssdd_jax.data.dataset as dataset_module
from ssdd_jax.data import Dataset, channel_statistics, fingerprint, split_validation
from ssdd_jax.data.dataset import convert_channels, pad_images
from ssdd_jax.errors import InputError


def make_dataset(num_train=50, num_test=20, shape=(6, 5, 3), seed=0, **changes):
    random = np.random.RandomState(seed)
    fields = {
        "name": "toy",
        "train_images": random.randint(0, 256, (num_train, *shape)).astype(np.uint8),
        "train_labels": random.randint(0, 4, num_train).astype(np.int32),
        "test_images": random.randint(0, 256, (num_test, *shape)).astype(np.uint8),
        "test_labels": random.randint(0, 4, num_test).astype(np.int32),
        "class_names": ("a", "b", "c", "d"),
    }
    return Dataset(**{**fields, **changes})


def assert_refused(match, call, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


IMAGES = np.zeros((50, 6, 5, 3), np.uint8)
LABELS = np.zeros(50, np.int32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_images": IMAGES.astype(np.float32)}, r"train_images is float32 .*expected a NumPy uint8"),
        ({"train_images": IMAGES[..., 0]}, r"train_images is uint8 \(50, 6, 5\), expected .*\(n, H, W, C\)"),
        ({"train_images": IMAGES.tolist()}, r"train_images is a list, expected"),
        ({"test_labels": np.zeros(20, np.int64)}, r"test_labels is int64 \(20,\), expected a NumPy int32"),
        ({"test_labels": np.zeros((20, 1), np.int32)}, r"test_labels is int32 \(20, 1\), expected"),
        ({"train_labels": LABELS[:-1]}, r"train has 50 images and 49 labels, expected as many"),
        ({"train_labels": LABELS + 4}, r"train_labels span 4\.\.4, expected 0\.\.3"),
        ({"train_labels": LABELS - 1}, r"train_labels span -1\.\.-1, expected 0\.\.3"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, r"train_images has shape \(0, 6, 5, 3\), expected a non-empty"),
        ({"train_images": IMAGES[:, :0]}, r"train_images has shape \(50, 0, 5, 3\), expected a non-empty"),
        ({"train_images": IMAGES[:, :, :4]}, r"train images are 6x4x3 and test images 6x5x3, expected one shape"),
        ({"class_names": ["a", "b", "c", "d"]}, r"class_names is a list, expected a non-empty tuple of str"),
        ({"class_names": ()}, r"class_names is a tuple, expected a non-empty tuple of str"),
        ({"class_names": (0, 1, 2, 3)}, r"class_names is a tuple, expected a non-empty tuple of str"),
    ],
)
def test_dataset_refuses_inconsistent_fields(changes, match):
    assert_refused(match, make_dataset, **changes)


def test_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_dataset().name = "other"


def numbered(count):
    """A dataset whose every train image carries its own index, so that images can be told apart exactly."""
    index = np.arange(count)
    images = np.zeros((count, 2, 1, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = index // 256, index % 256
    return make_dataset(shape=(2, 1, 1), train_images=images, train_labels=(index % 4).astype(np.int32))


def image_numbers(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 1, 0, 0]


@pytest.mark.parametrize(("count", "fraction", "num_held"), [(1000, 0.1, 100), (301, 0.25, 75), (2, 0.5, 1)])
def test_split_validation_partitions_the_train_split(count, fraction, num_held):
    dataset = numbered(count)
    reduced, images, labels = split_validation(dataset, fraction)
    kept, held = image_numbers(reduced.train_images), image_numbers(images)
    assert len(held) == num_held
    assert set(kept).isdisjoint(held)
    assert sorted([*kept, *held]) == list(range(count))
    np.testing.assert_array_equal(reduced.train_labels, kept % 4)
    np.testing.assert_array_equal(labels, held % 4)
    np.testing.assert_array_equal(reduced.test_images, dataset.test_images)
    np.testing.assert_array_equal(reduced.test_labels, dataset.test_labels)


def test_split_validation_depends_on_the_seed_alone():
    dataset = numbered(1000)
    first, again, other = (image_numbers(split_validation(dataset, 0.1, seed)[1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    # The stream is frozen by NumPy: other numbers here would silently change every reported validation score.
    np.testing.assert_array_equal(first[:5], [1, 14, 27, 31, 45])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_split_validation_refuses_a_fraction_out_of_range(fraction):
    assert_refused("validation fraction is .*, expected more than 0 and less than 1", split_validation, make_dataset(), fraction)


def test_split_validation_refuses_empty_parts_and_bad_seeds():
    assert_refused("0.001 of 50 train images holds out 0, expected at least 1", split_validation, make_dataset(), 0.001)
    assert_refused("0.999 of 50 train images holds out 50, expected at least 1", split_validation, make_dataset(), 0.999)
    assert_refused("validation seed is -1, expected 0", split_validation, make_dataset(), 0.1, -1)


def test_pad_images_centres_the_image_in_zeros():
    dataset = make_dataset(shape=(28, 28, 1))
    padded = pad_images(dataset, 32)
    for before, after in ((dataset.train_images, padded.train_images), (dataset.test_images, padded.test_images)):
        assert after.shape == (len(before), 32, 32, 1)
        np.testing.assert_array_equal(after[:, 2:30, 2:30], before)
        assert after.sum(dtype=np.int64) == before.sum(dtype=np.int64)


def test_pad_images_puts_odd_rows_at_the_bottom_and_columns_at_the_right():
    dataset = make_dataset(shape=(6, 5, 3))
    padded = pad_images(dataset, 8).train_images
    np.testing.assert_array_equal(padded[:, 1:7, 1:6], dataset.train_images)


def test_pad_images_refuses_to_shrink():
    dataset = make_dataset(shape=(6, 5, 3))
    assert_refused("size is 5 but the images of 'toy' are 6x5, expected at least 6", pad_images, dataset, 5)
    assert pad_images(make_dataset(shape=(6, 6, 3)), 6).train_images.shape == (50, 6, 6, 3)


@pytest.mark.parametrize("block", [1, 7, 50, 4096])
def test_channel_statistics_equal_numpy_float64(monkeypatch, block):
    monkeypatch.setattr(dataset_module, "_BLOCK_IMAGES", block)
    images = make_dataset().train_images
    images[..., 1] //= 3
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255.0
    assert mean.dtype == std.dtype == np.float64
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-13)


def test_channel_statistics_of_a_constant_channel_are_exact():
    mean, std = channel_statistics(np.full((3, 2, 2, 1), 51, np.uint8))
    np.testing.assert_allclose(mean, [0.2], rtol=1e-15)
    np.testing.assert_allclose(std, [0.0], atol=1e-15)


def test_channel_statistics_refuse_other_arrays():
    assert_refused("images is float32 .*, expected a NumPy uint8", channel_statistics, IMAGES.astype(np.float32))
    assert_refused("images is uint8 .*, expected a NumPy uint8 array", channel_statistics, IMAGES[0])
    assert_refused("expected a non-empty image", channel_statistics, IMAGES[:0])


def test_fingerprint_is_stable_under_copies_and_memory_layout():
    dataset = make_dataset()
    strided = np.asfortranarray(dataset.train_images)
    assert not strided.flags.c_contiguous
    prints = {fingerprint(dataset), fingerprint(make_dataset()), fingerprint(dataclasses.replace(dataset, train_images=strided))}
    assert len(prints) == 1
    assert len(prints.pop()) == 64


@pytest.mark.parametrize("field", ["train_images", "train_labels", "test_images", "test_labels"])
def test_fingerprint_changes_with_a_single_element(field):
    dataset = make_dataset()
    changed = getattr(dataset, field).copy()
    changed.flat[changed.size // 2] ^= 1
    assert fingerprint(dataclasses.replace(dataset, **{field: changed})) != fingerprint(dataset)


def test_fingerprint_changes_with_names_and_shapes():
    dataset = make_dataset()
    changes = [
        {"name": "other"},
        {"class_names": ("a", "b", "c", "e")},
        {name: getattr(dataset, name).swapaxes(1, 2).copy().reshape(-1, 5, 6, 3) for name in ("train_images", "test_images")},
        {name: getattr(dataset, name).reshape(-1, 5, 6, 3) for name in ("train_images", "test_images")},
    ]
    prints = [fingerprint(dataset), *(fingerprint(dataclasses.replace(dataset, **change)) for change in changes)]
    assert len(set(prints)) == len(prints)


def test_data_imports_numpy_and_the_standard_library_only():
    allowed = {*sys.stdlib_module_names, "numpy", "sklearn"}
    for file in Path(dataset_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed or name == "ssdd_jax.errors" or name.startswith("ssdd_jax.data"), (file.name, name)


def test_grey_becomes_three_equal_channels_and_colour_its_luma_as_pillow_has_them():
    colour = make_dataset()
    grey = convert_channels(colour, 1)
    assert grey.train_images.shape == (50, 6, 5, 1)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour.test_images])
    np.testing.assert_array_equal(grey.test_images[..., 0], expected)
    again = convert_channels(grey, 3)
    for channel in range(3):
        np.testing.assert_array_equal(again.train_images[..., channel], grey.train_images[..., 0])
    np.testing.assert_array_equal(again.train_labels, colour.train_labels)
    assert convert_channels(colour, 3) is colour


def test_other_numbers_of_channels_are_refused():
    assert_refused("has 2 channels and 3 are asked for, expected 1 or 3", convert_channels, make_dataset(shape=(6, 5, 2)), 3)
    assert_refused("has 3 channels and 4 are asked for", convert_channels, make_dataset(), 4)
