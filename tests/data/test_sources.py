"""The registry of sources, the digits, and files in MNIST's format."""

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from ssdd_jax.data import Source, Split
from ssdd_jax.data.sources import _ARCHIVES, KINDS, NAMED, archives, default_data_dir, open_source
from ssdd_jax.data.sources.idx import FASHION_MNIST_FOLDER, FASHION_MNIST_NAMES, KMNIST_NAMES
from ssdd_jax.errors import DataError


def assert_refused(match, *args, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        open_source(*args, **kwargs)
    assert "\n" not in str(caught.value)


def assert_holds(source, train_images, train_labels, test_images, test_labels):
    for name, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        np.testing.assert_array_equal(source.splits[name].images, images)
        np.testing.assert_array_equal(source.splits[name].labels, labels)
        assert source.splits[name].images.dtype == np.uint8
        assert source.splits[name].labels.dtype == np.int32


def test_a_source_from_outside_is_opened_by_its_name(tmp_path):
    toy = Source("toy", {"train": Split(np.zeros((2, 4, 4, 1), np.uint8), None)}, (), ())
    NAMED.register("toy", lambda folder: toy if folder == tmp_path else None)
    KINDS.register("made", lambda argument, folder: (argument, folder))
    try:
        assert open_source("toy", tmp_path) is toy
        assert open_source("made:from:this", tmp_path) == ("from:this", tmp_path)
        assert archives("toy") == ()
        assert_refused("unknown data source 'toi', expected one of digits, .*, toy, idx:..., .* made:...; did you mean 'toy'", "toi")
    finally:
        NAMED.remove("toy")
        KINDS.remove("made")
    assert_refused("unknown data source 'toy'", "toy")


def test_the_archives_are_those_of_named_sources():
    assert set(_ARCHIVES) < set(NAMED)


# Sources by name


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("digit", r"unknown data source 'digit', expected one of digits, mnist, .* idx:..., .*; did you mean 'digits'\?"),
        ("array:x.npz", r"did you mean 'arrays'\?"),
        ("qqqq", r"unknown data source 'qqqq'.*; choose one of them"),
        ("a\nb", r"unknown data source"),
        ("cifar10:train", r"data source 'cifar10:train' has an argument, expected none"),
    ],
)
def test_unknown_sources_are_named_with_the_nearest_and_all(source, match):
    assert_refused(match, source)


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("digits", "fashion_mnist")])
def test_missing_files_are_named_with_their_folder_and_the_way_to_get_them(tmp_path, name):
    with pytest.raises(DataError) as caught:
        open_source(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert all(archive.file.removesuffix(".gz") in message and archive.md5 in message for archive in archives(name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_wants_its_argument(kind, tmp_path):
    assert_refused(".", f"{kind}:", tmp_path)


def test_the_data_folder_is_that_of_the_environment_or_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SSDD_JAX_DATA", raising=False)
    assert default_data_dir() == Path("data")
    monkeypatch.setenv("SSDD_JAX_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    assert_refused(str(tmp_path), "cifar10")


# digits


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return open_source("digits")


def test_digits_split_covers_all_and_is_disjoint(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pairs = lambda split: [(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)]
    train, test = pairs(digits.splits["train"]), pairs(digits.splits["test"])
    whole = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    assert sorted(train + test) == sorted((image.tobytes(), int(label)) for image, label in zip(whole, bunch.target, strict=True))
    assert set(train).isdisjoint(test)
    assert digits.splits["train"].images.shape[1:] == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")


def test_digits_split_is_stratified(digits):
    num_train, num_test = (np.bincount(labels, minlength=10) for labels in (digits.splits["train"].labels, digits.splits["test"].labels))
    np.testing.assert_array_less(np.abs(num_test - 0.2 * (num_train + num_test)), 0.5 + 1e-9)
    assert 350 <= num_test.sum() <= 370


def test_digits_split_is_the_same_every_time(digits):
    # The split is part of every reported number on digits: it must not move between releases.
    parts = [part for name in ("train", "test") for part in (digits.splits[name].images, digits.splits[name].labels)]
    whole = b"".join(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes() for part in parts)
    assert hashlib.sha256(whole).hexdigest() == "b2dc6bc80dc3dabceea408739f5b50e0ea9509bb043e8f4b7a3f89bea5dddba2"


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refused(r"not installed; run: pip install ssdd-jax\[demo\]", "digits")


# IDX


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    return header + array.tobytes()


@pytest.fixture
def splits():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (30, 7, 5)).astype(np.uint8)
    labels = random.randint(0, 10, 30).astype(np.uint8)
    return images[:20], labels[:20], images[20:], labels[20:]


IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write_idx(folder, splits, compressed=False):
    folder.mkdir(exist_ok=True)
    for name, array in zip(IDX_NAMES, splits, strict=True):
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_round_trips_exactly(tmp_path, splits, compressed):
    dataset = open_source(f"idx:{write_idx(tmp_path / 'mine', splits, compressed)}")
    assert_holds(dataset, splits[0][..., None], splits[1], splits[2][..., None], splits[3])
    assert dataset.name == "mine"
    assert dataset.class_names == tuple("0123456789")


def test_idx_gzip_and_plain_may_be_mixed(tmp_path, splits):
    folder = write_idx(tmp_path / "mine", splits)
    expected = (splits[0][..., None], splits[1], splits[2][..., None], splits[3])
    content = (folder / IDX_NAMES[0]).read_bytes()
    (folder / IDX_NAMES[0]).unlink()
    (folder / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(content))
    assert_holds(open_source(f"idx:{folder}"), *expected)
    (folder / IDX_NAMES[0]).write_bytes(content)
    (folder / f"{IDX_NAMES[0]}.gz").write_bytes(b"never read: the plain file goes first")
    assert_holds(open_source(f"idx:{folder}"), *expected)


@pytest.mark.parametrize(
    ("name", "class_names"), [("mnist", tuple("0123456789")), ("fashion_mnist", FASHION_MNIST_NAMES), ("kmnist", KMNIST_NAMES)]
)
def test_named_datasets_lie_in_a_folder_of_their_name_or_in_the_data_folder(tmp_path, splits, name, class_names):
    expected = (splits[0][..., None], splits[1], splits[2][..., None], splits[3])
    write_idx(tmp_path, splits)
    source = open_source(name, tmp_path)
    assert_holds(source, *expected)
    assert (source.name, source.class_names) == (name, class_names)
    write_idx(tmp_path / name, (splits[0][:5], splits[1][:5], *splits[2:]))
    assert len(open_source(name, tmp_path).splits["train"].images) == 5


def test_idx_missing_files_are_all_named_with_the_remedy(tmp_path, splits):
    folder = write_idx(tmp_path / "mine", splits)
    (folder / IDX_NAMES[1]).unlink()
    (folder / IDX_NAMES[2]).unlink()
    named = r"mine' has no train-labels-idx1-ubyte\[.gz\], t10k-images-idx3-ubyte\[.gz\]; expected the four"
    assert_refused(named, f"idx:{folder}")
    assert_refused(r"no train-labels-idx1-ubyte\[.gz\], t10k-images.*md5: .*data download mnist", "mnist", folder)
    assert_refused(r"nowhere' has no train-images-idx3-ubyte\[.gz\], ", f"idx:{tmp_path / 'nowhere'}")


def test_fashion_mnist_is_also_looked_for_where_debian_has_it(tmp_path, splits, monkeypatch):
    monkeypatch.setattr("ssdd_jax.data.sources.idx.FASHION_MNIST_FOLDER", str(write_idx(tmp_path / "debian", splits)))
    assert_holds(open_source("fashion_mnist", tmp_path / "data"), splits[0][..., None], splits[1], splits[2][..., None], splits[3])
    monkeypatch.setattr("ssdd_jax.data.sources.idx.FASHION_MNIST_FOLDER", str(tmp_path / "none"))
    assert_refused("Debian's package dataset-fashion-mnist", "fashion_mnist", tmp_path / "data")


def replace_bytes(at, new):
    return lambda content: content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    ("index", "damage", "match"),
    [
        (0, replace_bytes(0, b"\0\0\x08\x01"), r"train-images.* begins with bytes '00000801', expected the IDX magic number '00000803'"),
        (1, replace_bytes(0, b"\0\0\x08\x03"), r"train-labels.* begins with bytes '00000803', expected the IDX magic number '00000801'"),
        (2, lambda content: b"", r"t10k-images.* begins with bytes '', expected the IDX magic"),
        (0, lambda content: content[:10], r"holds 10 bytes, expected"),
        (0, lambda content: content[:-1], r"holds 715 bytes, expected 716 for its header's shape \(20, 7, 5\); the file is truncated"),
        (3, lambda content: content + b"\0", r"t10k-labels.* holds 19 bytes, expected 18"),
        (0, replace_bytes(4, b"\xff" * 12), r"holds 716 bytes, expected 79228162458924105385300197391"),
        (1, lambda content: idx_bytes(np.zeros(19, np.uint8)), r"holds 20 images and 'train-labels-idx1-ubyte.*' 19 labels"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_refuses_damaged_contents(tmp_path, splits, index, damage, match, compressed):
    folder = write_idx(tmp_path / "mine", splits, compressed)
    content = damage(idx_bytes(splits[index]))
    name = IDX_NAMES[index] + (".gz" if compressed else "")
    (folder / name).write_bytes(gzip.compress(content) if compressed else content)
    assert_refused(match, f"idx:{folder}")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda content: content[: len(content) // 2], "EOFError"),
        (lambda content: content[:-4], "EOFError"),
        (lambda content: b"not gzip at all", "BadGzipFile"),
        (lambda content: content[:10] + b"\xff" * 40 + content[50:], "error"),
        (lambda content: content[:-8] + b"\0\0\0\0" + content[-4:], "BadGzipFile"),
    ],
)
def test_idx_refuses_broken_gzip(tmp_path, splits, damage, error):
    folder = write_idx(tmp_path / "mine", splits, compressed=True)
    file = folder / f"{IDX_NAMES[0]}.gz"
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(rf"cannot read .*train-images-idx3-ubyte.gz' \({error}\), expected a complete gzip file", f"idx:{folder}")


@pytest.mark.skipif(not Path(FASHION_MNIST_FOLDER).is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_installed_fashion_mnist_is_whole():
    source = open_source("fashion_mnist", "/nowhere")
    train, test = source.splits["train"], source.splits["test"]
    assert train.images.shape == (60000, 28, 28, 1)
    assert test.images.shape == (10000, 28, 28, 1)
    assert source.class_names[0] == "T-shirt/top"
    np.testing.assert_array_equal(np.bincount(train.labels), 6000)
    np.testing.assert_array_equal(np.bincount(test.labels), 1000)
