import contextlib
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdd_jax.data.source import PixelBlocks
from ssdd_jax.data.sources import _npy
from ssdd_jax.data.sources import arrays as arrays_module
from ssdd_jax.data.sources.arrays import open_arrays
from ssdd_jax.errors import DataError

NOWHERE = Path("nowhere")


@pytest.fixture
def arrays():
    random = np.random.RandomState(1)
    return {
        "x_train": random.randint(0, 256, (12, 6, 5, 3)).astype(np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": random.randint(0, 256, (6, 6, 5, 3)).astype(np.uint8),
        "y_test": np.arange(6) % 3,
    }


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Every array counts as large, and a block holds three of the images above."""
    monkeypatch.setattr(arrays_module, "_HELD_BYTES", 0)
    monkeypatch.setattr(_npy, "BLOCK_BYTES", 3 * 90)


def write_npz(tmp_path, arrays, /, compressed=True, **changes):
    file = tmp_path / "mine.npz"
    merged = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    (np.savez_compressed if compressed else np.savez)(file, **merged)
    return str(file)


def write_folder(tmp_path, arrays, /, **changes):
    folder = tmp_path / "mine"
    folder.mkdir()
    for key, value in {**arrays, **changes}.items():
        if value is not None:
            np.save(folder / f"{key}.npy", value)
    return str(folder)


WRITERS = [write_npz, write_folder]


def pixels(images):
    return np.concatenate(list(images.read())) if isinstance(images, PixelBlocks) else images


def assert_holds(source, arrays):
    for split in ("train", "test"):
        images, labels = source.splits[split].images, source.splits[split].labels
        np.testing.assert_array_equal(pixels(images), arrays[f"x_{split}"])
        np.testing.assert_array_equal(labels, arrays[f"y_{split}"])
        assert pixels(images).dtype == np.uint8
        assert labels.dtype == np.int32


def read_all(argument):
    return {split: pixels(found.images) for split, found in open_arrays(argument, NOWHERE).splits.items()}


def assert_refused(match, argument):
    with pytest.raises(DataError, match=match) as caught:
        read_all(argument)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label_dtype", [np.int64, np.uint8, np.int32, ">i4"])
@pytest.mark.parametrize("write", WRITERS)
def test_round_trips_exactly(tmp_path, arrays, write, label_dtype):
    labels = {key: arrays[key].astype(label_dtype) for key in ("y_train", "y_test")}
    source = open_arrays(write(tmp_path, arrays, **labels), NOWHERE)
    assert_holds(source, arrays)
    assert list(source.splits) == ["train", "test"]
    assert source.name == "mine"
    assert source.class_names == ("0", "1", "2")


def test_files_are_those_that_are_read(tmp_path, arrays):
    file = write_npz(tmp_path, arrays, ids=np.arange(3))
    assert open_arrays(file, NOWHERE).files == (Path(file),)
    folder = Path(write_folder(tmp_path, arrays, ids=np.arange(3)))
    assert set(open_arrays(str(folder), NOWHERE).files) == {folder / f"{key}.npy" for key in arrays}


@pytest.mark.parametrize("write", WRITERS)
def test_class_names_and_grey_images(tmp_path, arrays, write):
    grey = {key: arrays[key][..., 0] for key in ("x_train", "x_test")}
    source = open_arrays(write(tmp_path, arrays, **grey, class_names=np.array(["cat", "dog", "owl", "unseen"])), NOWHERE)
    assert source.splits["train"].images.shape == (12, 6, 5, 1)
    np.testing.assert_array_equal(source.splits["test"].images[..., 0], grey["x_test"])
    assert source.class_names == ("cat", "dog", "owl", "unseen")
    assert all(type(name) is str for name in source.class_names)


def test_test_classes_that_are_not_in_train_need_class_names(tmp_path, arrays):
    assert_refused(r"y_test in .* spans 0\.\.3, expected 0\.\.2 for 3 classes", write_npz(tmp_path, arrays, y_test=np.arange(6) % 4))
    file = write_npz(tmp_path, arrays, y_test=np.arange(6) % 4, class_names=np.array(["a", "b", "c", "d"]))
    assert open_arrays(file, NOWHERE).splits["test"].labels.max() == 3


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        (("x_train",), {"train": False}),
        (("x_train", "y_train"), {"train": True}),
        (("x_train", "x_test"), {"train": False, "test": False}),
        (("x_unlabelled",), {"unlabelled": False}),
        (("x_train", "y_train", "x_test", "y_test", "x_unlabelled"), {"train": True, "test": True, "unlabelled": False}),
        (("x_train", "y_train", "x_unlabelled"), {"train": True, "unlabelled": False}),
    ],
)
def test_labels_and_the_test_split_may_be_left_out(tmp_path, arrays, write, keys, splits):
    everything = {**arrays, "x_unlabelled": arrays["x_train"][:4] // 2}
    source = open_arrays(write(tmp_path, {key: everything[key] for key in keys}), NOWHERE)
    assert {split: found.labels is not None for split, found in source.splits.items()} == splits
    assert source.class_names == (("0", "1", "2") if True in splits.values() else ())
    for split, found in source.splits.items():
        np.testing.assert_array_equal(found.images, everything[f"x_{split}"])


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        (("x_train", "y_train", "x_test"), "y_test"),
        (("x_train", "x_test", "y_test"), "y_train"),
        (("x_train", "y_train", "y_test"), "x_test"),
        (("y_train",), "x_train"),
        (("x_test",), "x_train"),
        (("x_unlabelled", "y_train"), "x_train"),
        (("x_unlabelled", "x_test"), "x_train"),
        (("y_test",), "x_train, y_train, x_test"),
        (("x_train", "class_names"), "y_train"),
        (("class_names",), "x_train, y_train"),
        ((), "x_train"),
    ],
)
def test_what_is_missing_is_named(tmp_path, arrays, write, keys, missing):
    everything = {**arrays, "x_unlabelled": arrays["x_train"], "class_names": np.array(["a", "b", "c"])}
    argument = write(tmp_path, {key: everything[key] for key in keys}, ids=np.arange(2))
    assert_refused(rf"has no {missing} \(it has .*'ids'.*\), expected x_train, y_train, x_test, y_test, where", argument)


def test_a_single_npy_is_images_without_labels(tmp_path, arrays):
    np.save(tmp_path / "pictures.npy", arrays["x_train"])
    source = open_arrays(str(tmp_path / "pictures.npy"), NOWHERE)
    assert list(source.splits) == ["train"]
    images = source.splits["train"].images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(images, arrays["x_train"])
    assert source.splits["train"].labels is None
    assert (source.name, source.class_names, source.files) == ("pictures", (), (tmp_path / "pictures.npy",))


def test_pixels_in_npy_files_are_mapped_whatever_their_size(tmp_path, arrays, tiny_blocks):
    grey = arrays["x_test"][..., 0]
    source = open_arrays(write_folder(tmp_path, arrays, x_train=np.asfortranarray(arrays["x_train"]), x_test=grey), NOWHERE)
    assert all(isinstance(split.images, np.memmap) for split in source.splits.values())
    np.testing.assert_array_equal(source.splits["train"].images, arrays["x_train"])
    np.testing.assert_array_equal(source.splits["test"].images, grey[..., None])


def test_argument_is_relative_to_the_working_directory_or_home(tmp_path, arrays, monkeypatch):
    file = write_npz(tmp_path, arrays)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for argument in ("mine.npz", "~/mine.npz", "./mine.npz"):
        source = open_arrays(argument, NOWHERE)
        assert source.files == (Path(file),)
        assert_holds(source, arrays)


# Large members of an .npz


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_members_are_read_in_blocks(tmp_path, arrays, tiny_blocks, compressed, order):
    images = {key: np.array(arrays[key], order=order) for key in ("x_train", "x_test")}
    source = open_arrays(write_npz(tmp_path, arrays, compressed=compressed, **images), NOWHERE)
    train = source.splits["train"].images
    assert isinstance(train, PixelBlocks)
    assert train.shape == (12, 6, 5, 3)
    # Read twice: a second pass begins anew.
    for _ in range(2):
        assert [len(block) for block in train.read()] == [3, 3, 3, 3]
        assert_holds(source, arrays)


def test_blocks_of_grey_images_and_an_incomplete_last_one(tmp_path, arrays, tiny_blocks):
    grey = arrays["x_train"][:10, ..., 0]
    file = write_npz(tmp_path, {"x_train": grey})
    images = open_arrays(file, NOWHERE).splits["train"].images
    blocks = list(images.read())
    assert [block.shape for block in blocks] == [(9, 6, 5, 1), (1, 6, 5, 1)]
    np.testing.assert_array_equal(np.concatenate(blocks)[..., 0], grey)


def test_images_larger_than_a_block_come_one_by_one(tmp_path, arrays, tiny_blocks, monkeypatch):
    monkeypatch.setattr(_npy, "BLOCK_BYTES", 1)
    images = open_arrays(write_npz(tmp_path, arrays), NOWHERE).splits["test"].images
    assert [len(block) for block in images.read()] == [1] * 6


def test_damage_in_a_large_member_is_found_on_reading(tmp_path, arrays, tiny_blocks):
    # More than is read with the header.
    file = Path(write_npz(tmp_path, {"x_train": np.tile(arrays["x_train"], (20, 1, 1, 1))}, compressed=False))
    content = bytearray(file.read_bytes())
    content[15_000] ^= 1
    file.write_bytes(content)
    images = open_arrays(str(file), NOWHERE).splits["train"].images
    with pytest.raises(DataError, match=r"cannot read x_train in .* \(BadZipFile\), expected a complete .npz"):
        list(images.read())


def test_member_over_64_mb_is_not_held(tmp_path):
    """The real threshold and blocks: 72 MB of images."""
    images = np.zeros((6_000, 64, 64, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(6_000) % 251
    found = open_arrays(write_npz(tmp_path, {"x_train": images}, compressed=False), NOWHERE).splits["train"].images
    assert isinstance(found, PixelBlocks)
    blocks = list(found.read())
    assert max(block.nbytes for block in blocks) <= 2**24
    np.testing.assert_array_equal(np.concatenate(blocks)[:, 0, 0, 0], images[:, 0, 0, 0])


# Floats


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("large", [False, True])
def test_floats_become_pixels(tmp_path, arrays, write, dtype, large, request):
    if large:
        request.getfixturevalue("tiny_blocks")
    floats = {key: (arrays[key] / 255.0).astype(dtype) for key in ("x_train", "x_test")}
    source = open_arrays(write(tmp_path, arrays, **floats), NOWHERE)
    assert isinstance(source.splits["train"].images, PixelBlocks) == large
    assert_holds(source, arrays)


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=30))
def test_floats_are_rounded_half_to_even(tmp_path_factory, values):
    # 255/2 lies half way.
    values = np.array([*values, 0.5], np.float32)
    file = tmp_path_factory.mktemp("floats") / "x.npy"
    np.save(file, values.reshape(1, 1, -1))
    found = open_arrays(str(file), NOWHERE).splits["train"].images.ravel().tolist()
    assert found == [round(255 * Fraction(float(value))) for value in values]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_rounding_has_put_outside_are_0_and_1(tmp_path, arrays, dtype, large, request):
    if large:
        request.getfixturevalue("tiny_blocks")
    images = (arrays["x_train"] / 255.0).astype(dtype)
    eps = max(np.finfo(dtype).eps, np.finfo(np.float32).eps)
    inside, outside = images.copy(), images.copy()
    inside[0, 0, 0], expected = (np.nextafter(dtype(1), dtype(2)), 1 + 4 * eps, -4 * eps), arrays["x_train"].copy()
    expected[0, 0, 0] = 255, 255, 0
    assert_holds(open_arrays(write_npz(tmp_path, arrays, x_train=inside), NOWHERE), {**arrays, "x_train": expected})
    for value in (1 + 8 * eps, -8 * eps):
        outside[3, 0, 0, 0] = value
        assert_refused("image 3 of x_train", write_npz(tmp_path, arrays, x_train=outside))


@pytest.mark.parametrize("write", WRITERS)
def test_columns_and_bytes_are_labels_and_names(tmp_path, arrays, write):
    columns = {key: arrays[key][:, None] for key in ("y_train", "y_test")}
    names = np.array(["häuser".encode(), b"b", b"c"])[:, None]
    source = open_arrays(write(tmp_path, arrays, **columns, class_names=names), NOWHERE)
    assert source.class_names == ("häuser", "b", "c")
    assert_holds(source, arrays)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-1e-6, "-1e-06"), (1.001, "1.001"), (200.0, "200")]
)
def test_other_floats_are_refused_naming_the_first_image(tmp_path, arrays, write, large, value, shown, request):
    if large:
        request.getfixturevalue("tiny_blocks")
    images = (arrays["x_train"] / 255.0).astype(np.float32)
    images[7, 2, 3, 1] = images[9, 0, 0, 0] = value
    argument = write(tmp_path, arrays, x_train=images)
    assert_refused(rf"image 7 of .*x_train.* holds {shown}, expected numbers in \[0, 1\]; repair", argument)


# What is not a dataset


OBJECTS = np.array([np.zeros(1), np.zeros(2)], dtype=object)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("x_test", np.zeros((6, 6, 5, 3), np.int64), r" is int64, expected uint8 .* or floats in \[0, 1\]; .*save x.astype\('uint8'\)"),
        ("x_train", np.zeros((12, 6, 5, 3), bool), r" is bool, expected uint8"),
        ("x_train", np.full((12, 6, 5, 3), "a"), r" is <U1, expected uint8"),
        ("x_train", np.zeros((12, 90), np.uint8), r" has shape \(12, 90\), expected non-empty \(n, H, W, C\)"),
        ("x_train", np.zeros((0, 6, 5, 3), np.uint8), r" has shape \(0, 6, 5, 3\), expected non-empty"),
        ("x_train", np.zeros((0, 6, 5, 3), np.float32), r" has shape \(0, 6, 5, 3\), expected non-empty"),
        ("x_train", np.uint8(3), r" has shape \(\), expected non-empty"),
        ("x_train", np.zeros((12, 3, 6, 5), np.uint8), r"expected channels last; save x.transpose\(0, 2, 3, 1\)"),
        ("x_train", np.zeros((12, 1, 6, 5), np.float32), r"expected channels last; save x.transpose\(0, 2, 3, 1\)"),
        ("x_train", OBJECTS, r" is an object array, expected plain numbers or text"),
        ("class_names", np.array(["a", "b", "c"], dtype=object), r" is an object array, expected plain"),
        ("class_names", np.arange(3), r" is int64 \(3,\), expected a list of text"),
        ("class_names", np.array("abc"), r" is <U3 \(\), expected a list of text"),
        ("class_names", np.array([], dtype=str), r" is <U1 \(0,\), expected a list of text"),
        ("y_train", np.zeros(12), r" is float64 \(12,\), expected integers \(n,\)"),
        ("y_train", np.zeros((12, 3), int), r" is int64 \(12, 3\), expected integers \(n,\) or \(n, 1\); of one-hot rows save y.argmax"),
        ("y_train", np.zeros((1, 12), int), r" is int64 \(1, 12\), expected integers"),
        ("y_train", np.zeros((12, 1)), r" is float64 \(12, 1\), expected integers.*ravel"),
        ("class_names", np.array([b"a", b"\xff", b"c"]), r" holds b'\\xff', expected text or UTF-8"),
        ("y_test", np.zeros(5, int), r" has 5 labels for 6 images, expected one each"),
        ("y_train", np.zeros(0, int), r" has 0 labels for 12 images, expected one each"),
        ("y_train", np.arange(12) - 1, r" spans -1\.\.10, expected 0\.\.10"),
        ("y_train", np.full(12, -1), r" spans -1\.\.-1, expected 0\.\.0"),
        ("y_test", np.full(6, 2**32), r" spans 4294967296\.\.4294967296, expected 0\.\.2"),
    ],
)
def test_contents_that_are_no_dataset_are_refused(tmp_path, arrays, write, key, value, match):
    where = f"{key} in '.*mine.npz'" if write is write_npz else f"'.*mine/{key}.npy'"
    assert_refused(where + match if match.startswith(" ") else match, write(tmp_path, arrays, **{key: value}))


def test_labels_that_do_not_fit_the_classes_are_refused(tmp_path, arrays):
    names = np.array(["a", "b"])
    assert_refused(r"y_train in .* spans 0\.\.2, expected 0\.\.1 for 2 classes", write_npz(tmp_path, arrays, class_names=names))
    assert_refused(
        r"y_train in .* goes up to 1099511627776 with 12 images, expected classes numbered from 0",
        write_npz(tmp_path, arrays, y_train=np.full(12, 2**40)),
    )


def test_objects_in_a_single_npy_are_never_loaded(tmp_path):
    np.save(tmp_path / "mine.npy", OBJECTS)
    assert_refused("mine.npy' is an object array", str(tmp_path / "mine.npy"))


# Missing and damaged files


def test_missing_files_are_refused(tmp_path):
    assert_refused("was given no path, expected an .npz .*write it as arrays:FILE", "")
    for name in ("gone.npz", "gone.npy", "gone"):
        assert_refused(rf"no file '.*{name}', expected an .npz", str(tmp_path / name))
    assert_refused(r"has no x_train \(it has nothing\), expected x_train", str(tmp_path))
    assert_refused("no file", str(tmp_path / "two\nlines.npz"))


def test_files_that_are_not_npz_are_refused(tmp_path, arrays):
    file = tmp_path / "mine.npz"
    for content in (b"", b"hello\n", Path(write_npz(tmp_path, arrays)).read_bytes()[:-30]):
        file.write_bytes(content)
        assert_refused("is not a complete .npz file, expected one from numpy.savez", str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x_train", b"no array")
        archive.writestr("x_train.npy", b"no array")
    assert_refused(r"cannot read x_train in .* \(ValueError\), expected a complete .npz", str(file))


def test_damaged_members_are_refused(tmp_path, arrays):
    file = Path(write_npz(tmp_path, arrays))
    content = bytearray(file.read_bytes())
    content[300:340] = bytes(40)
    file.write_bytes(content)
    assert_refused(r"cannot read x_train in .* \(\w+\), expected a complete .npz", str(file))


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:200], lambda content: content + b"\0"])
def test_npy_of_another_length_is_refused(tmp_path, arrays, damage):
    file = Path(write_folder(tmp_path, arrays)) / "x_train.npy"
    file.write_bytes(damage(file.read_bytes()))
    for argument in (file, file.parent):
        assert_refused(r"x_train.npy' holds \d+ bytes, expected 1208 for its header's shape \(12, 6, 5, 3\)", str(argument))
    member = file.read_bytes()
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        archive.writestr("x_train.npy", member)
    assert_refused(r"x_train in '.*mine.npz' holds \d+ bytes, expected 1208", str(tmp_path / "mine.npz"))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 6, 5, 3), 'more': 1}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 6, 5, 3)",
        "{'descr': 'nothing', 'fortran_order': False, 'shape': (12, 6, 5, 3), }",
        "{[]: 1}",
        "('''",
        "__import__('os').system('false')",
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'9' * 4000}, {'9' * 4000}), }}",
    ],
)
def test_npy_with_a_wrong_header_is_refused(tmp_path, header):
    text = header.encode() + b"\n"
    file = tmp_path / "mine.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(1080))
    assert_refused(r"mine.npy' (\(ValueError\), expected a complete|holds \d+ bytes)", str(file))


def test_npy_with_a_negative_shape_is_refused(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (-12, -6, 5, 3), }\n"
    (tmp_path / "mine.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(1080))
    assert_refused(r"mine.npy' holds \d+ bytes, expected \d+ for its header's shape \(-12, -6, 5, 3\)", str(tmp_path / "mine.npy"))


@pytest.mark.parametrize("at", range(0, 128, 3))
def test_npy_with_a_damaged_header_is_refused_or_harmless(tmp_path, arrays, at):
    file = tmp_path / "mine.npy"
    np.save(file, arrays["x_train"])
    content = bytearray(file.read_bytes())
    for value in (0, 0x27, 0x28, 0x80, 0xFF):
        content[at] = value
        file.write_bytes(content)
        with contextlib.suppress(DataError):
            assert read_all(str(file))["train"].size == arrays["x_train"].size
