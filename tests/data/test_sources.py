"""Properties of the data sources: exact round trips, fixed splits, and one-line errors."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from ssdd_jax.data import fingerprint, load_dataset
from ssdd_jax.data.sources import FASHION_MNIST_FOLDER
from ssdd_jax.errors import InputError


def assert_refused(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        load_dataset(*args, **kwargs)
    assert "\n" not in str(caught.value)


def assert_holds(dataset, train_images, train_labels, test_images, test_labels):
    np.testing.assert_array_equal(dataset.train_images, train_images)
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_images, test_images)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)


# Sources by name


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("digit", r"unknown data source 'digit', expected one of digits, idx, arrays; did you mean 'digits'\?"),
        ("array", r"did you mean 'arrays'\?"),
        ("qqqq", r"unknown data source 'qqqq', expected one of digits, idx, arrays; choose"),
        ("a\nb", r"unknown data source"),
    ],
)
def test_unknown_source_names_the_nearest_and_all(source, match):
    assert_refused(match, source)


# digits


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_dataset("digits")


def test_digits_split_covers_all_and_is_disjoint(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train = [(image.tobytes(), int(label)) for image, label in zip(digits.train_images, digits.train_labels, strict=True)]
    test = [(image.tobytes(), int(label)) for image, label in zip(digits.test_images, digits.test_labels, strict=True)]
    whole = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    assert sorted(train + test) == sorted((image.tobytes(), int(label)) for image, label in zip(whole, bunch.target, strict=True))
    assert set(train).isdisjoint(test)
    assert digits.train_images.shape[1:] == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")


def test_digits_split_is_stratified(digits):
    num_train, num_test = (np.bincount(labels, minlength=10) for labels in (digits.train_labels, digits.test_labels))
    np.testing.assert_array_less(np.abs(num_test - 0.2 * (num_train + num_test)), 0.5 + 1e-9)
    assert 350 <= num_test.sum() <= 370


def test_digits_split_is_the_same_every_time(digits):
    assert fingerprint(load_dataset("digits")) == fingerprint(digits)
    # The split is part of every reported number on digits: it must not move between releases.
    assert fingerprint(digits) == "b269db625ad2b23ef582889e89a16e9305f80b8bb403c9bde07349d539a4cb07"


def test_digits_pads_to_size(digits):
    padded = load_dataset("digits", size=12)
    np.testing.assert_array_equal(padded.train_images[:, 2:10, 2:10], digits.train_images)
    assert_refused("size is 4 but the images of 'digits' are 8x8, expected at least 8", "digits", size=4)
    assert_refused("size is -1", "digits", size=-1)


def test_digits_refuses_a_path():
    assert_refused("data path is 'somewhere', expected none", "digits", "somewhere")


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
    dataset = load_dataset("idx", str(write_idx(tmp_path / "mine", splits, compressed)))
    assert_holds(dataset, splits[0][..., None], splits[1], splits[2][..., None], splits[3])
    assert dataset.name == "mine"
    assert dataset.class_names == tuple("0123456789")


def test_idx_gzip_and_plain_may_be_mixed(tmp_path, splits):
    folder = write_idx(tmp_path / "mine", splits)
    before = fingerprint(load_dataset("idx", str(folder)))
    content = (folder / IDX_NAMES[0]).read_bytes()
    (folder / IDX_NAMES[0]).unlink()
    (folder / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(content))
    assert fingerprint(load_dataset("idx", str(folder))) == before
    (folder / IDX_NAMES[0]).write_bytes(content)
    (folder / f"{IDX_NAMES[0]}.gz").write_bytes(b"never read: the plain file goes first")
    assert fingerprint(load_dataset("idx", str(folder))) == before


def test_idx_folder_name_gives_fashion_mnist_its_class_names(tmp_path, splits, monkeypatch):
    folder = write_idx(tmp_path / "fashion-mnist", splits)
    for path in (f"{folder}", f"{folder}/"):
        assert load_dataset("idx", path).class_names[9] == "Ankle boot"
    monkeypatch.chdir(folder)
    assert load_dataset("idx", ".").class_names[9] == "Ankle boot"


def test_idx_missing_files_are_all_named_with_the_remedy(tmp_path, splits):
    folder = write_idx(tmp_path / "mine", splits)
    (folder / IDX_NAMES[1]).unlink()
    (folder / IDX_NAMES[2]).unlink()
    named = r"mine' has no train-labels-idx1-ubyte\[.gz\], t10k-images-idx3-ubyte\[.gz\]; .*apt-get install dataset-fashion-mnist"
    assert_refused(named, "idx", str(folder))
    assert_refused(r"nowhere' has no train-images-idx3-ubyte\[.gz\], .*apt-get install", "idx", str(tmp_path / "nowhere"))


def test_idx_empty_path_is_debians_folder(tmp_path, splits, monkeypatch):
    monkeypatch.setattr("ssdd_jax.data.sources.FASHION_MNIST_FOLDER", str(write_idx(tmp_path / "fashion-mnist", splits)))
    assert_holds(load_dataset("idx"), splits[0][..., None], splits[1], splits[2][..., None], splits[3])


def replace_bytes(at, new):
    return lambda content: content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    ("index", "damage", "match"),
    [
        (0, replace_bytes(0, b"\0\0\x08\x01"), r"train-images.* begins with bytes '00000801', expected the IDX magic number '00000803'"),
        (1, replace_bytes(0, b"\0\0\x08\x03"), r"train-labels.* begins with bytes '00000803', expected the IDX magic number '00000801'"),
        (2, lambda content: b"", r"t10k-images.* begins with bytes '', expected the IDX magic"),
        (0, lambda content: content[:10], r"holds 10 bytes, expected"),
        (0, lambda content: content[:-1], r"holds 715 bytes, expected 716 for its header's shape \(20, 7, 5\); the file is cut"),
        (3, lambda content: content + b"\0", r"t10k-labels.* holds 19 bytes, expected 18"),
        (0, replace_bytes(4, b"\xff" * 12), r"holds 716 bytes, expected 79228162458924105385300197391"),
        (1, lambda content: idx_bytes(np.zeros(19, np.uint8)), r"holds 20 images and 'train-labels-idx1-ubyte.*' 19 labels"),
        (1, replace_bytes(8, b"\x0a"), r"train_labels span \d\.\.10, expected 0\.\.9"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_refuses_damaged_contents(tmp_path, splits, index, damage, match, compressed):
    folder = write_idx(tmp_path / "mine", splits, compressed)
    content = damage(idx_bytes(splits[index]))
    name = IDX_NAMES[index] + (".gz" if compressed else "")
    (folder / name).write_bytes(gzip.compress(content) if compressed else content)
    assert_refused(match, "idx", str(folder))


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_refuses_empty_splits(tmp_path, splits, compressed):
    empty = (splits[0][:0], splits[1][:0], *splits[2:])
    assert_refused("expected a non-empty image", "idx", str(write_idx(tmp_path / "mine", empty, compressed)))


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
    assert_refused(rf"cannot read .*train-images-idx3-ubyte.gz' \({error}\), expected a whole gzip file", "idx", str(folder))


@pytest.mark.skipif(not Path(FASHION_MNIST_FOLDER).is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_installed_fashion_mnist_is_whole():
    dataset = load_dataset("idx")
    assert dataset.train_images.shape == (60000, 28, 28, 1)
    assert dataset.test_images.shape == (10000, 28, 28, 1)
    assert dataset.class_names[0] == "T-shirt/top"
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), 6000)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), 1000)


# arrays


@pytest.fixture
def arrays():
    random = np.random.RandomState(1)
    return {
        "x_train": random.randint(0, 256, (12, 6, 5, 3)).astype(np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": random.randint(0, 256, (6, 6, 5, 3)).astype(np.uint8),
        "y_test": np.arange(6) % 3,
    }


def write_npz(tmp_path, arrays, **changes):
    file = tmp_path / "mine.npz"
    merged = {**arrays, **changes}
    np.savez_compressed(file, **{key: value for key, value in merged.items() if value is not None})
    return str(file)


@pytest.mark.parametrize("label_dtype", [np.int64, np.uint8, np.int32, ">i4"])
def test_arrays_round_trip_exactly(tmp_path, arrays, label_dtype):
    labels = {key: arrays[key].astype(label_dtype) for key in ("y_train", "y_test")}
    dataset = load_dataset("arrays", write_npz(tmp_path, arrays, **labels))
    assert_holds(dataset, arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])
    assert dataset.name == "mine"
    assert dataset.class_names == ("0", "1", "2")


def test_arrays_class_names_and_grey_images(tmp_path, arrays):
    grey = {key: arrays[key][..., 0] for key in ("x_train", "x_test")}
    dataset = load_dataset("arrays", write_npz(tmp_path, arrays, **grey, class_names=np.array(["cat", "dog", "owl", "unseen"])))
    assert dataset.train_images.shape == (12, 6, 5, 1)
    np.testing.assert_array_equal(dataset.test_images[..., 0], grey["x_test"])
    assert dataset.class_names == ("cat", "dog", "owl", "unseen")
    assert all(type(name) is str for name in dataset.class_names)


def test_arrays_without_test_classes_in_train_need_class_names(tmp_path, arrays):
    assert_refused(
        r"y_test in .* spans 0\.\.3, expected 0\.\.2 for 3 classes", "arrays", write_npz(tmp_path, arrays, y_test=np.arange(6) % 4)
    )
    names = np.array(["a", "b", "c", "d"])
    assert load_dataset("arrays", write_npz(tmp_path, arrays, y_test=np.arange(6) % 4, class_names=names)).test_labels.max() == 3


OBJECTS = np.array([np.zeros(1), np.zeros(2)], dtype=object)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"y_test": None}, r"has no y_test \(it has 'x_train', 'y_train', 'x_test'\), expected x_train, y_train, x_test, y_test"),
        ({"x_train": np.zeros((12, 6, 5, 3), np.float32)}, r"x_train in .* is float32, expected uint8.*save numpy.rint\(255 \* x\)"),
        ({"x_test": np.zeros((6, 6, 5, 3), np.int64)}, r"x_test in .* is int64, expected uint8"),
        ({"x_train": np.zeros((12, 90), np.uint8)}, r"x_train in .* has shape \(12, 90\), expected non-empty \(n, H, W, C\)"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8)}, r"x_train in .* has shape \(0, 6, 5, 3\), expected non-empty"),
        ({"x_train": np.zeros((12, 3, 6, 5), np.uint8)}, r"expected channels last; save x.transpose\(0, 2, 3, 1\)"),
        ({"x_test": np.zeros((6, 4, 5, 3), np.uint8)}, r"train images are 6x5x3 and test images 4x5x3, expected one shape"),
        ({"x_train": OBJECTS}, r"x_train in .* is an object array, expected plain numbers or text"),
        ({"class_names": np.array(["a", "b", "c"], dtype=object)}, r"class_names in .* is an object array, expected plain"),
        ({"class_names": np.arange(3)}, r"class_names in .* is int64 \(3,\), expected a list of text"),
        ({"class_names": np.array("abc")}, r"class_names in .* is <U3 \(\), expected a list of text"),
        ({"class_names": np.array(["a", "b"])}, r"y_train in .* spans 0\.\.2, expected 0\.\.1 for 2 classes"),
        ({"y_train": np.zeros(12)}, r"y_train in .* is float64 \(12,\), expected integers \(n,\)"),
        ({"y_train": np.zeros((12, 1), int)}, r"y_train in .* is int64 \(12, 1\), expected integers.*ravel"),
        ({"y_test": np.zeros(5, int)}, r"y_test in .* has 5 labels for 6 images, expected one each"),
        ({"y_train": np.arange(12) - 1}, r"y_train in .* spans -1\.\.10, expected 0\.\.10"),
        ({"y_train": np.full(12, -1)}, r"y_train in .* spans -1\.\.-1, expected 0\.\.0"),
        ({"y_test": np.full(6, 2**32)}, r"y_test in .* spans 4294967296\.\.4294967296, expected 0\.\.2"),
        ({"y_train": np.full(12, 2**40)}, r"y_train in .* goes up to 1099511627776 with 12 images, expected classes numbered from 0"),
    ],
)
def test_arrays_refuses_contents_that_are_no_dataset(tmp_path, arrays, changes, match):
    assert_refused(match, "arrays", write_npz(tmp_path, arrays, **changes))


def test_arrays_refuses_missing_files_and_folders(tmp_path):
    assert_refused("was given no path, expected an .npz", "arrays")
    assert_refused("no file '.*gone.npz', expected an .npz", "arrays", str(tmp_path / "gone.npz"))
    assert_refused("no file '.*', expected an .npz", "arrays", str(tmp_path))


def test_arrays_refuses_files_that_are_not_npz(tmp_path, arrays):
    file = tmp_path / "mine.npz"
    for content in (b"", b"hello\n", Path(write_npz(tmp_path, arrays)).read_bytes()[:-30]):
        file.write_bytes(content)
        assert_refused("is not a whole .npz file, expected one written by numpy.savez", "arrays", str(file))
    np.save(tmp_path / "single.npy", arrays["x_train"])
    assert_refused("is not a whole .npz file", "arrays", str(tmp_path / "single.npy"))
    # A zip archive behind other bytes still counts as a zip file, but not as an .npz.
    file.write_bytes(b"hello" + Path(write_npz(tmp_path, arrays)).read_bytes())
    assert_refused(r"cannot open .* \(\w+\), expected a whole .npz", "arrays", str(file))


def test_arrays_refuses_damaged_members(tmp_path, arrays):
    file = Path(write_npz(tmp_path, arrays))
    content = bytearray(file.read_bytes())
    content[300:340] = bytes(40)
    file.write_bytes(content)
    assert_refused(r"cannot read x_train in .* \(\w+\), expected a whole .npz", "arrays", str(file))


def test_arrays_error_stays_on_one_line_whatever_the_path(tmp_path):
    assert_refused("no file", "arrays", str(tmp_path / "two\nlines.npz"))
