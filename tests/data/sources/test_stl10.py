import gzip
import io
import tarfile

import numpy as np
import pytest

from ssdd_jax.data.source import PixelBlocks
from ssdd_jax.data.sources.stl10 import open_stl10
from ssdd_jax.errors import DataError

NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def make(seed, count):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 96, 96, 3)).astype(np.uint8), np.arange(count) % 10


def planes(images):
    """Red, green, blue; each column after column."""
    return b"".join(image[:, column, channel].tobytes() for image in images for channel in range(3) for column in range(96))


@pytest.fixture(scope="module")
def splits():
    return {"train": make(0, 11), "test": make(1, 10), "unlabelled": (make(2, 600)[0], None)}


@pytest.fixture(scope="module")
def members(splits):
    files = {
        "test_X.bin": planes(splits["test"][0]),
        "test_y.bin": bytes(splits["test"][1].astype(np.uint8) + 1),
        "train_X.bin": planes(splits["train"][0]),
        "train_y.bin": bytes(splits["train"][1].astype(np.uint8) + 1),
        "unlabeled_X.bin": planes(splits["unlabelled"][0]),
        "class_names.txt": ("\n".join(NAMES) + "\n").encode(),
        "fold_indices.txt": b"0 1 2 \n",
    }
    return {f"stl10_binary/{name}": content for name, content in files.items()}


def write(folder, members):
    file = folder / "stl10_binary.tar.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def changed(members, name, change=None):
    """The members with one of them changed, or left out."""
    path = f"stl10_binary/{name}"
    rest = {key: content for key, content in members.items() if key != path}
    return rest if change is None else {**rest, path: change(members[path])}


def small(members):
    return changed(members, "unlabeled_X.bin")


def assert_refused(match, folder):
    with pytest.raises(DataError, match=match) as caught:
        open_stl10(folder)
    assert "\n" not in str(caught.value)
    assert "stl10_binary.tar.gz" in str(caught.value)


def test_gives_all_splits_back_block_by_block(tmp_path, splits, members):
    file = write(tmp_path, members)
    source = open_stl10(tmp_path)
    assert list(source.splits) == ["train", "test", "unlabelled"]
    for split, (images, labels) in splits.items():
        found = source.splits[split]
        assert isinstance(found.images, PixelBlocks)
        assert found.images.shape == images.shape
        # Read twice: a second pass begins anew.
        for _ in range(2):
            blocks = list(found.images.read())
            assert all(block.dtype == np.uint8 and len(block) <= 512 for block in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), images)
        if labels is None:
            assert found.labels is None
        else:
            np.testing.assert_array_equal(found.labels, labels)
            assert found.labels.dtype == np.int32
    assert (source.name, source.class_names, source.files) == ("stl10", NAMES, (file,))


def test_without_unlabelled_images_there_is_no_such_split(tmp_path, splits, members):
    write(tmp_path, small(members))
    source = open_stl10(tmp_path)
    assert list(source.splits) == ["train", "test"]
    np.testing.assert_array_equal(np.concatenate(list(source.splits["train"].images.read())), splits["train"][0])


def test_splits_may_be_read_side_by_side_and_left_off(tmp_path, splits, members):
    write(tmp_path, members)
    source = open_stl10(tmp_path)
    first, second = (source.splits[split].images.read() for split in ("unlabelled", "test"))
    np.testing.assert_array_equal(next(first), splits["unlabelled"][0][:512])
    np.testing.assert_array_equal(next(second), splits["test"][0])
    first.close()
    assert list(second) == []


def test_missing_archive_is_named_with_checksum_and_address(tmp_path):
    assert_refused("has no stl10_binary.tar.gz .*md5 91f7769df0f17e558f3565bffb0c7dfb, published at http://ai.stanford.edu", tmp_path)


@pytest.mark.parametrize("name", ["train_y.bin", "test_y.bin", "class_names.txt"])
def test_missing_labels_or_names_are_refused(tmp_path, members, name):
    write(tmp_path, changed(small(members), name))
    assert_refused(f"there is no stl10_binary/{name} in it", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("train_X.bin", None, "train_X.bin holds 0 bytes .*expected one or more images of 27648 bytes"),
        ("test_X.bin", lambda content: content[:-1], "test_X.bin holds 276479 bytes"),
        ("test_X.bin", lambda content: content[:-27648], "10 labels for 9 test images .*expected one each"),
        ("train_y.bin", lambda content: content + b"\1", "12 labels for 11 train images"),
        ("train_y.bin", lambda content: b"\0" + content[1:], r"train labels 0\.\.10 .*expected 1\.\.10, as it names 10 classes"),
        ("test_y.bin", lambda content: b"\x0b" + content[1:], r"test labels 2\.\.11 "),
        ("class_names.txt", lambda content: b"only one\n", r"expected 1\.\.1, as it names 1 classes"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, members, name, change, match):
    write(tmp_path, changed(small(members), name, change))
    assert_refused(match, tmp_path)


def test_unlabelled_images_that_are_cut_are_refused(tmp_path, members):
    write(tmp_path, changed(members, "unlabeled_X.bin", lambda content: content[:30_000]))
    assert_refused("unlabeled_X.bin holds 30000 bytes", tmp_path)
    write(tmp_path, changed(members, "unlabeled_X.bin", lambda content: b""))
    assert_refused("unlabeled_X.bin holds 0 bytes", tmp_path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[: len(content) // 2], "EOFError"),
        (lambda content: content[:-8] + b"\0\0\0\0" + content[-4:], "CRC check failed"),
        (lambda content: content + b"garbage", "BadGzipFile"),
        (lambda content: b"<html>", "BadGzipFile"),
    ],
)
def test_damaged_archive_is_refused_with_its_checksum(tmp_path, members, damage, match):
    file = write(tmp_path, small(members))
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(f"{match}.*its md5 is .*the published one 91f7769d", tmp_path)


def test_archive_changed_after_opening_is_refused(tmp_path, members):
    file = write(tmp_path, small(members))
    images = open_stl10(tmp_path).splits["train"].images
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"stl10_binary.tar.gz': EOFError"):
        list(images.read())
    write(tmp_path, changed(small(members), "train_X.bin"))
    with pytest.raises(DataError, match=r"there is no stl10_binary/train_X.bin in it any more"):
        list(images.read())
