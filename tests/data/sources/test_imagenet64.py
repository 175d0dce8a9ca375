import zipfile

import numpy as np
import pytest

from ssdd_jax.data.source import PixelBlocks
from ssdd_jax.data.sources import _npy
from ssdd_jax.data.sources.imagenet64 import open_imagenet64
from ssdd_jax.errors import DataError

TRAIN = tuple(f"train_data_batch_{number}.npz" for number in range(1, 11))
VAL = "val_data.npz"
PARTS = {"train_part1": TRAIN[:5], "train_part2": TRAIN[5:], "val": (VAL,)}


def make(seed, count):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 64, 64, 3)).astype(np.uint8), random.randint(0, 1000, count)


def arrays(images, labels, /, **changes):
    """Rows of red, green and blue planes; labels from 1."""
    data = np.array([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])
    content = {"data": data, "labels": labels + 1, "mean": data.mean(axis=0), **changes}
    return {key: value for key, value in content.items() if value is not None}


@pytest.fixture(scope="module")
def batches():
    found = {name: make(seed, 2 + seed % 3) for seed, name in enumerate((*TRAIN, VAL))}
    for name, label in ((TRAIN[0], 0), (TRAIN[9], 999)):
        found[name][1][0] = label
    return found


def write_npz(file, content, compressed=True):
    file.parent.mkdir(exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(file, **content)


def write_unpacked(folder, batches, compressed=True, subfolders=False):
    for part, names in PARTS.items():
        for name in names:
            write_npz((folder / f"Imagenet64_{part}_npz" if subfolders else folder) / name, arrays(*batches[name]), compressed)


def zip_part(folder, part, inner="Imagenet64_{part}_npz/", method=zipfile.ZIP_DEFLATED):
    """Move a part's batches into its published archive."""
    file = folder / f"Imagenet64_{part}_npz.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in PARTS[part]:
            archive.write(folder / name, inner.format(part=part) + name)
            (folder / name).unlink()
    return file


def assert_holds(source, batches):
    train, test = source.splits["train"], source.splits["test"]
    assert list(source.splits) == ["train", "test"]
    for split, names in ((train, TRAIN), (test, (VAL,))):
        assert isinstance(split.images, PixelBlocks)
        images = np.concatenate([batches[name][0] for name in names])
        assert split.images.shape == images.shape
        for _ in range(2):
            blocks = list(split.images.read())
            assert all(block.dtype == np.uint8 and block.ndim == 4 for block in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), images)
        np.testing.assert_array_equal(split.labels, np.concatenate([batches[name][1] for name in names]))
        assert split.labels.dtype == np.int32
    assert source.name == "imagenet64"


def assert_refused(match, folder):
    with pytest.raises(DataError, match=match) as caught:
        open_imagenet64(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("subfolders", [False, True])
def test_unpacked_batches(tmp_path, batches, compressed, subfolders):
    write_unpacked(tmp_path, batches, compressed, subfolders)
    source = open_imagenet64(tmp_path)
    assert_holds(source, batches)
    assert [file.name for file in source.files] == [*TRAIN, VAL]
    assert (source.class_names[0], source.class_names[999], len(source.class_names)) == ("1", "1000", 1000)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inner", ["Imagenet64_{part}_npz/", ""])
def test_published_archives(tmp_path, batches, compressed, method, inner):
    write_unpacked(tmp_path, batches, compressed)
    files = [zip_part(tmp_path, part, inner, method) for part in PARTS]
    source = open_imagenet64(tmp_path)
    assert_holds(source, batches)
    assert source.files == tuple(files)


@pytest.mark.parametrize("kept", [30, 700, 2000, 20_000])
def test_archives_are_read_whatever_part_of_them_is_kept(tmp_path, batches, monkeypatch, kept):
    """At the real size the pixels do not fit into what is kept of a batch's end, and even a block is less than all of them."""
    monkeypatch.setattr(_npy, "_KEPT_BYTES", kept)
    monkeypatch.setattr(_npy, "BLOCK_BYTES", 20_000)
    write_unpacked(tmp_path, batches, compressed=False)
    for part in PARTS:
        zip_part(tmp_path, part)
    assert_holds(open_imagenet64(tmp_path), batches)


def test_unpacked_batches_go_before_archives(tmp_path, batches):
    write_unpacked(tmp_path, batches)
    for part in PARTS:
        (tmp_path / f"Imagenet64_{part}_npz.zip").write_bytes(b"never read")
    assert_holds(open_imagenet64(tmp_path), batches)


def test_unpacked_batches_and_archives_may_be_mixed(tmp_path, batches):
    write_unpacked(tmp_path, batches)
    file = zip_part(tmp_path, "train_part2")
    source = open_imagenet64(tmp_path)
    assert_holds(source, batches)
    assert file in source.files
    assert len(source.files) == 7


def test_missing_batches_are_named(tmp_path, batches):
    assert_refused(
        r"has no Imagenet64_train_part1_npz.zip, Imagenet64_train_part2_npz.zip, Imagenet64_val_npz.zip .*https://image-net.org", tmp_path
    )
    write_unpacked(tmp_path, batches)
    (tmp_path / TRAIN[6]).unlink()
    (tmp_path / VAL).unlink()
    missing = r"has no train_data_batch_7.npz, val_data.npz, expected train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz, "
    assert_refused(missing + "unpacked or inside Imagenet64_train_part1_npz.zip, ", tmp_path)
    with zipfile.ZipFile(tmp_path / "Imagenet64_val_npz.zip", "w") as archive:
        archive.writestr("val_data", b"the pickled version")
    assert_refused(missing, tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": None}, r"train_data_batch_3.npz' has no data \(it has 'labels', 'mean'\)"),
        ({"labels": None}, r"train_data_batch_3.npz' has no labels \(it has 'data', 'mean'\)"),
        ({"data": np.zeros((4, 3072), np.uint8)}, r"is uint8 \(4, 3072\), expected uint8 \(n, 12288\); take the 64x64 batches"),
        ({"data": np.zeros((4, 12288), np.float32)}, r"is float32 \(4, 12288\)"),
        ({"data": np.zeros((0, 12288), np.uint8)}, r"is uint8 \(0, 12288\)"),
        ({"data": np.array([b"x", None], dtype=object)}, "data in .*train_data_batch_3.npz' is an object array"),
        ({"labels": np.ones(3, int)}, r"labels in .*train_data_batch_3.npz' is int64 \(3,\), expected integers \(4,\)"),
        ({"labels": np.ones(4)}, r"is float64 \(4,\)"),
        ({"labels": np.arange(4)}, r"spans 0\.\.3, expected 1\.\.1000"),
        ({"labels": np.full(4, 1001)}, r"spans 1001\.\.1001"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, batches, changes, match):
    write_unpacked(tmp_path, batches)
    write_npz(tmp_path / TRAIN[2], arrays(*batches[TRAIN[2]], **changes))
    assert_refused(match, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"<html>",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
    ],
)
def test_damaged_batch_is_refused(tmp_path, batches, damage):
    write_unpacked(tmp_path, batches)
    file = tmp_path / TRAIN[4]
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(r"train_data_batch_5.npz' is not a complete .npz file", tmp_path)


@pytest.mark.parametrize("part", ["train_part2", "val"])
@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"<html>" + content[:-40]]
)
def test_damaged_archive_is_refused(tmp_path, batches, part, damage):
    write_unpacked(tmp_path, batches)
    file = zip_part(tmp_path, part)
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(rf"cannot read .*Imagenet64_{part}_npz.zip': BadZipFile.*expected the complete published zip archive", tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_batch_in_an_archive_is_found_on_opening(tmp_path, batches, method):
    write_unpacked(tmp_path, batches, compressed=False)
    file = zip_part(tmp_path, "val", method=method)
    content = bytearray(file.read_bytes())
    content[5_000] ^= 0x55
    file.write_bytes(content)
    assert_refused(r"'Imagenet64_val_npz/val_data.npz' in .*Imagenet64_val_npz.zip'", tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"<html>" * 100])
def test_member_of_an_archive_that_is_no_npz_is_refused(tmp_path, batches, content):
    write_unpacked(tmp_path, batches)
    (tmp_path / VAL).write_bytes(content)
    zip_part(tmp_path, "val")
    assert_refused(r"'Imagenet64_val_npz/val_data.npz' in .*Imagenet64_val_npz.zip' is not a complete .npz file", tmp_path)


def test_damaged_pixels_of_an_unpacked_batch_are_found_on_reading(tmp_path, batches):
    write_unpacked(tmp_path, batches, compressed=False)
    file = tmp_path / TRAIN[1]
    content = bytearray(file.read_bytes())
    content[5_000] ^= 0x55
    file.write_bytes(content)
    images = open_imagenet64(tmp_path).splits["train"].images
    with pytest.raises(DataError, match=r"cannot read data in '.*train_data_batch_2.npz' \(BadZipFile\)"):
        list(images.read())
