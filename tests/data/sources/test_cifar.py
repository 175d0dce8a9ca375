import gzip
import io
import tarfile

import numpy as np
import pytest

from ssdd_jax.data.sources.cifar import open_cifar10, open_cifar100
from ssdd_jax.errors import DataError

NAMES = {10: [f"thing {number}" for number in range(10)], 100: [f"fine_{number}" for number in range(100)]}


def make(seed, count, classes):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8), random.randint(0, classes, count)


def records(images, labels, coarse=False):
    """One record an image, written byte by byte as the dataset's page describes it."""
    content = b""
    for image, label in zip(images, labels, strict=True):
        content += bytes([19 - label % 20, label] if coarse else [label])
        for channel in range(3):
            content += b"".join(bytes(image[row, :, channel].tolist()) for row in range(32))
    return content


def cifar10_members(parts):
    """Images and labels of the five batches and the test batch -> the archive's members."""
    names = [*[f"data_batch_{number}.bin" for number in range(1, 6)], "test_batch.bin"]
    members = {f"cifar-10-batches-bin/{name}": records(*part) for name, part in zip(names, parts, strict=True)}
    meta = ("\n".join(NAMES[10]) + "\n\n").encode()
    return {"cifar-10-batches-bin/batches.meta.txt": meta, "cifar-10-batches-bin/readme.html": b"<meta>", **members}


def cifar100_members(train, test):
    return {
        "cifar-100-binary/train.bin": records(*train, coarse=True),
        "cifar-100-binary/test.bin": records(*test, coarse=True),
        "cifar-100-binary/fine_label_names.txt": ("\n".join(NAMES[100]) + "\n").encode(),
        "cifar-100-binary/coarse_label_names.txt": b"\n".join(b"coarse_%d" % number for number in range(20)),
    }


def tar_bytes(members, prefix=""):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo(f"{prefix}{next(iter(members)).partition('/')[0]}")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def parts():
    return [make(seed, count, 10) for seed, count in enumerate((3, 2, 1, 2, 3, 4))]


@pytest.fixture(scope="module")
def members(parts):
    return cifar10_members(parts)


def write(folder, content, name="cifar-10-binary.tar.gz"):
    (folder / name).write_bytes(gzip.compress(content, 1))
    return folder / name


def assert_refused(match, tmp_path, reader=open_cifar10):
    with pytest.raises(DataError, match=match) as caught:
        reader(tmp_path)
    assert "\n" not in str(caught.value)
    assert "binary.tar.gz" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_cifar10_gives_the_batches_back_in_order(tmp_path, parts, members, prefix):
    file = write(tmp_path, tar_bytes(members, prefix))
    source = open_cifar10(tmp_path)
    train, test = source.splits["train"], source.splits["test"]
    np.testing.assert_array_equal(train.images, np.concatenate([images for images, _ in parts[:5]]))
    np.testing.assert_array_equal(train.labels, np.concatenate([labels for _, labels in parts[:5]]))
    np.testing.assert_array_equal(test.images, parts[5][0])
    np.testing.assert_array_equal(test.labels, parts[5][1])
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == test.labels.dtype == np.int32
    assert (source.name, source.class_names, source.files) == ("cifar10", tuple(NAMES[10]), (file,))


def test_cifar10_batches_may_lie_in_any_order(tmp_path, parts, members):
    write(tmp_path, tar_bytes(dict(reversed(members.items()))))
    np.testing.assert_array_equal(open_cifar10(tmp_path).splits["train"].labels, np.concatenate([labels for _, labels in parts[:5]]))


def test_cifar100_takes_the_fine_labels(tmp_path):
    train, test = make(7, 6, 100), make(8, 3, 100)
    write(tmp_path, tar_bytes(cifar100_members(train, test)), "cifar-100-binary.tar.gz")
    source = open_cifar100(tmp_path)
    for split, (images, labels) in (("train", train), ("test", test)):
        np.testing.assert_array_equal(source.splits[split].images, images)
        np.testing.assert_array_equal(source.splits[split].labels, labels)
        assert source.splits[split].labels.dtype == np.int32
    assert (source.name, source.class_names) == ("cifar100", tuple(NAMES[100]))


def test_cifar10_of_the_real_size(tmp_path, members):
    """60,000 images of one colour each."""
    content, labels = {}, {}
    for name in members:
        if name.endswith(".bin"):
            labels[name] = np.arange(10_000) % 10
            batch = np.full((10_000, 3073), len(labels), np.uint8)
            batch[:, 0] = labels[name]
            content[name] = batch.tobytes()
    write(tmp_path, tar_bytes({**members, **content}))
    splits = open_cifar10(tmp_path).splits
    assert splits["train"].images.shape == (50_000, 32, 32, 3)
    assert splits["test"].images.shape == (10_000, 32, 32, 3)
    assert splits["train"].images[::10_000, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert np.bincount(splits["train"].labels).tolist() == [5_000] * 10


def test_missing_archive_is_named_with_checksum_and_address(tmp_path):
    assert_refused("has no cifar-10-binary.tar.gz .*md5 c32a1d4ab5d03f1284b67883e8d87530, published at https://www.cs", tmp_path)
    assert_refused("has no cifar-100-binary.tar.gz .*md5 03b5dce01913d631647c71ecec9e9cb8", tmp_path, open_cifar100)


def changed(members, name, change):
    path = f"cifar-10-batches-bin/{name}"
    return {**members, path: change(members[path])}


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "data_batch_2.bin",
            lambda content: content[:-1],
            r"data_batch_2.bin holds 6145 bytes .*expected one or more records of 3073 bytes",
        ),
        ("data_batch_2.bin", lambda content: content + b"\0", r"data_batch_2.bin holds 6147 bytes"),
        ("test_batch.bin", lambda content: b"", r"test_batch.bin holds 0 bytes"),
        ("test_batch.bin", lambda content: b"\x0a" + content[1:], r"a test label is 10 .*expected 0\.\.9, as it names 10 classes"),
        ("data_batch_5.bin", lambda content: b"\xff" + content[1:], r"a train label is 255 "),
        ("batches.meta.txt", lambda content: b"\n", r"expected 0\.\.-1, as it names 0 classes"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, members, name, change, match):
    write(tmp_path, tar_bytes(changed(members, name, change)))
    assert_refused(match, tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_missing_member_is_named(tmp_path, members, name):
    write(tmp_path, tar_bytes({path: content for path, content in members.items() if not path.endswith(name)}))
    assert_refused(rf"there is no cifar-10-batches-bin/{name} in it .*its md5 is .*the published one c32a1d4", tmp_path)


def test_the_other_versions_archive_is_refused(tmp_path, members):
    write(tmp_path, tar_bytes({"cifar-10-batches-py/data_batch_1": b"\x80"}))
    assert_refused("there is no cifar-10-batches-bin/data_batch_1.bin, .*published at https", tmp_path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[: len(content) // 2], "EOFError"),
        (lambda content: content[:-4], "EOFError"),
        (lambda content: content[:-8] + b"\0\0\0\0" + content[-4:], "CRC check failed"),
        (lambda content: content + b"garbage", "BadGzipFile"),
        (lambda content: content + gzip.compress(b"garbage"), "something else follows the tar archive"),
        (lambda content: gzip.decompress(content), "BadGzipFile: Not a gzipped file"),
        (lambda content: gzip.compress(b"no tar archive" * 100), "ReadError"),
        (lambda content: gzip.compress(gzip.decompress(content)[:15_000]), "ReadError: unexpected end of data"),
        (lambda content: b"", "ReadError|EOFError"),
        (lambda content: b"<html>", "BadGzipFile"),
    ],
)
def test_damaged_archive_is_refused(tmp_path, members, damage, match):
    file = write(tmp_path, tar_bytes(members))
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(match, tmp_path)


def test_damaged_header_inside_is_refused(tmp_path, members):
    """The tar format has no checksum of contents, but gzip has: only a header written wrongly gets here."""
    content = bytearray(tar_bytes(members))
    at = content.index(b"cifar-10-batches-bin/data_batch_4.bin")
    content[at + 148 : at + 154] = b"000000"
    write(tmp_path, bytes(content))
    assert_refused("one of its headers is damaged", tmp_path)


def test_any_flipped_byte_is_refused(tmp_path, members):
    file = write(tmp_path, tar_bytes(members))
    content = file.read_bytes()
    # The first bytes are gzip's name and time fields, which hold nothing.
    for at in range(10, len(content), len(content) // 40):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        assert_refused("cannot read", tmp_path)
