import numpy as np
import pytest
import scipy.io

from ssdd_jax.data.sources.svhn import open_svhn
from ssdd_jax.errors import DataError


@pytest.fixture(scope="module")
def splits():
    random = np.random.RandomState(0)
    return {
        split: (random.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8), np.arange(n) % 10) for split, n in (("train", 13), ("test", 11))
    }


def write(folder, split, images, labels, **changes):
    """Rows and columns first, the images last, and 10 for the digit 0."""
    content = {"X": np.stack(list(images), axis=-1), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None], **changes}
    content = {key: value for key, value in content.items() if value is not None}
    scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)


@pytest.fixture
def folder(tmp_path, splits):
    for split, (images, labels) in splits.items():
        write(tmp_path, split, images, labels)
    return tmp_path


def assert_refused(match, folder, name="_32x32.mat"):
    with pytest.raises(DataError, match=match) as caught:
        open_svhn(folder)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_gives_both_splits_back(folder, splits):
    source = open_svhn(folder)
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(source.splits[split].images, images)
        np.testing.assert_array_equal(source.splits[split].labels, labels)
        assert source.splits[split].images.dtype == np.uint8
        assert source.splits[split].labels.dtype == np.int32
    assert list(source.splits) == ["train", "test"]
    assert (source.name, source.class_names) == ("svhn", tuple("0123456789"))
    assert source.files == (folder / "train_32x32.mat", folder / "test_32x32.mat")


def test_the_extra_images_are_not_read(folder, splits):
    (folder / "extra_32x32.mat").write_bytes(b"never looked at")
    assert len(open_svhn(folder).splits["train"].images) == len(splits["train"][0])


def test_thousands_of_images(folder):
    count = 26_032
    labels = np.arange(count) % 10
    images = np.broadcast_to(np.array([1, 2, 3], np.uint8), (count, 32, 32, 3))
    scipy.io.savemat(
        folder / "test_32x32.mat",
        {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]},
        do_compression=True,
    )
    split = open_svhn(folder).splits["test"]
    assert split.images.shape == (count, 32, 32, 3)
    assert split.images[-1, 5, 7].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(split.labels, labels)


def test_missing_files_are_all_named(tmp_path, folder):
    (folder / "train_32x32.mat").unlink()
    assert_refused("has no train_32x32.mat .*md5 e26dedcc434d2e4c54c9b2d4a06d8373", folder)
    assert_refused("has no train_32x32.mat, test_32x32.mat .*eb5a983be6a315427106f1b164d9cef3", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"X": None}, "there is no X in it .*expected X and y"),
        ({"y": None}, "there is no y in it"),
        ({"X": np.zeros((32, 32, 3, 13))}, r"X is float64 \(32, 32, 3, 13\) .*expected uint8 \(32, 32, 3, n\)"),
        ({"X": np.zeros((13, 32, 32, 3), np.uint8)}, r"X is uint8 \(13, 32, 32, 3\)"),
        ({"X": np.zeros((32, 32, 3), np.uint8)}, r"X is uint8 \(32, 32, 3\)"),
        ({"X": "text"}, r"X is <U4 "),
        ({"y": np.ones((12, 1), np.uint8)}, r"y is uint8 \(12, 1\) .*expected integers \(13, 1\)"),
        ({"y": np.ones((13, 1))}, r"y is float64 \(13, 1\)"),
        ({"y": np.zeros((13, 1), np.uint8)}, r"y spans 0\.\.0 .*expected 1\.\.10"),
        ({"y": np.full((13, 1), 11, np.uint8)}, r"y spans 11\.\.11"),
    ],
)
def test_wrong_contents_are_refused(folder, splits, changes, match):
    write(folder, "train", *splits["train"], **changes)
    assert_refused(match, folder, "train_32x32.mat")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-3],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: b"<html>" * 100,
        # The header of version 7.3, which is HDF5.
        lambda content: content[:124] + b"\x00\x02IM" + content[128:],
        lambda content: content[:1000] + b"\x55" * 50 + content[1050:],
    ],
)
def test_damaged_file_is_refused_with_its_checksum(folder, damage):
    file = folder / "test_32x32.mat"
    file.write_bytes(damage(file.read_bytes()))
    assert_refused("its md5 is .*the published one eb5a983b.*; download or write it again", folder, "test_32x32.mat")
