"""Where datasets come from: one small function a source, each from a path to a `Dataset`."""

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssdd_jax.data.dataset import Dataset, convert_channels, pad_images
from ssdd_jax.errors import InputError, nearest

# Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"

_DIGIT_NAMES = tuple("0123456789")
_FASHION_MNIST_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS_TEST_FRACTION = 0.2
_DIGITS_SPLIT_SEED = 0
_ARRAY_KEYS = ("x_train", "y_train", "x_test", "y_test")
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError)


def load_dataset(source: str, path: str = "", size: int = 0, channels: int = 0) -> Dataset:
    """Load a dataset into memory.

    Args:
      source: a key of SOURCES. "digits": scikit-learn's 8x8 digits. "idx": a folder of MNIST-style files, gzipped or plain.
        "arrays": an .npz of x_train, y_train, x_test, y_test and, optionally, class_names.
      path: the folder or file; "" is Debian's Fashion-MNIST for "idx", and the only choice for "digits".
      size: zero-pad the images to size x size pixels; 0 keeps them as they are.
      channels: 1 or 3 converts the images to so many; 0 keeps them as they are.

    Raises:
      InputError: an unknown source, a missing or damaged file, contents that are no dataset, or a size that would shrink.
    """
    if source not in SOURCES:
        hint = nearest(str(source), SOURCES, cutoff=0.4) or "; choose one of them"
        raise InputError(f"unknown data source {source!r}, expected one of {', '.join(SOURCES)}{hint}")
    dataset = SOURCES[source](path)
    dataset = convert_channels(dataset, channels) if channels != 0 else dataset
    return pad_images(dataset, size) if size != 0 else dataset


def _load_digits(path: str) -> Dataset:
    if path:
        raise InputError(f"data path is {path!r}, expected none: 'digits' comes with scikit-learn; drop the path or choose another source")
    # Imported here: scikit-learn is an optional extra.
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("data source 'digits' is in scikit-learn, which is not installed; run: pip install ssdd-jax[demo]") from error
    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(targets).astype(np.int32)
    # RandomState, not default_rng: NumPy freezes its stream, so the split is the same under every NumPy version.
    random = np.random.RandomState(_DIGITS_SPLIT_SEED)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(_DIGIT_NAMES)):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(_DIGITS_TEST_FRACTION * len(members))]] = True
    return Dataset("digits", images[~is_test], labels[~is_test], images[is_test], labels[is_test], _DIGIT_NAMES)


def _load_idx(path: str) -> Dataset:
    folder = Path(os.path.abspath(os.path.expanduser(path or FASHION_MNIST_FOLDER)))
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    # All four are looked for before any is read, so that one message names all that is missing; a plain file goes before its gzip.
    candidates = {name: (folder / name, folder / f"{name}.gz") for name in names}
    found = {name: file for name, pair in candidates.items() for file in reversed(pair) if file.is_file()}
    missing = [f"{name}[.gz]" for name in names if name not in found]
    if missing:
        raise InputError(
            f"folder {str(folder)!r} has no {', '.join(missing)}; expected the four MNIST-style files; "
            "set the data path to their folder, or for Fashion-MNIST on Debian run: apt-get install dataset-fashion-mnist"
        )
    splits = []
    for image_name, label_name in (names[:2], names[2:]):
        images = _read_idx(found[image_name], num_axes=3)
        labels = _read_idx(found[label_name], num_axes=1)
        if len(images) != len(labels):
            raise InputError(
                f"{str(found[image_name])!r} holds {len(images)} images and {found[label_name].name!r} {len(labels)} labels, "
                "expected as many of each; take both files from one release"
            )
        splits += [images[..., None], labels.astype(np.int32)]
    class_names = _FASHION_MNIST_NAMES if folder.name == "fashion-mnist" else _DIGIT_NAMES
    train_images, train_labels, test_images, test_labels = splits
    return Dataset(folder.name or "idx", train_images, train_labels, test_images, test_labels, class_names)


def _read_idx(file: Path, num_axes: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes: big-endian magic 0x000008 and the number of axes, the axes' lengths, then the bytes."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except _UNREADABLE as error:
        raise InputError(
            f"cannot read {str(file)!r} ({type(error).__name__}), expected a whole {'gzip' if file.suffix == '.gz' else 'IDX'} file; "
            "check its permissions or download it again"
        ) from error
    header_size = 4 + 4 * num_axes
    expected_magic = bytes([0, 0, 8, num_axes])
    if content[:4] != expected_magic:
        raise InputError(
            f"{str(file)!r} begins with bytes '{content[:4].hex()}', expected the IDX magic number '{expected_magic.hex()}'; "
            f"check that it is {'an image' if num_axes == 3 else 'a label'} file"
        )
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header_size, 4))
    # Python integers: a damaged header's product can exceed 64 bits.
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        raise InputError(
            f"{str(file)!r} holds {len(content)} bytes, expected {expected_size} for its header's shape {shape}; "
            "the file is cut or damaged: download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)


def _load_arrays(path: str) -> Dataset:
    if not path:
        raise InputError(f"data source 'arrays' was given no path, expected an .npz file with {', '.join(_ARRAY_KEYS)}; set the data path")
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise InputError(f"no file {str(file)!r}, expected an .npz with {', '.join(_ARRAY_KEYS)}; write one with numpy.savez_compressed")
    if not zipfile.is_zipfile(file):
        raise InputError(f"{str(file)!r} is not a whole .npz file, expected one written by numpy.savez or savez_compressed; write it again")
    try:
        archive = np.load(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"cannot open {str(file)!r} ({type(error).__name__}), expected a whole .npz file; write it again") from error
    with archive:
        missing = [key for key in _ARRAY_KEYS if key not in archive]
        if missing:
            raise InputError(
                f"{str(file)!r} has no {', '.join(missing)} (it has {', '.join(map(repr, archive.files)) or 'nothing'}), "
                f"expected {', '.join(_ARRAY_KEYS)}; write it with numpy.savez_compressed(path, x_train=..., ...)"
            )
        train_images, train_labels, test_images, test_labels = (_read_member(archive, key, file) for key in _ARRAY_KEYS)
        names = _read_member(archive, "class_names", file) if "class_names" in archive else None
    train_images, test_images = _as_nhwc(train_images, "x_train", file), _as_nhwc(test_images, "x_test", file)
    _check_labels(train_labels, len(train_images), "y_train", file)
    _check_labels(test_labels, len(test_images), "y_test", file)
    if names is None:
        class_names = _number_classes(train_labels, file)
    elif names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise InputError(
            f"class_names in {str(file)!r} is {names.dtype} {names.shape}, expected a list of text; save numpy.array(names, dtype=str)"
        )
    else:
        class_names = tuple(str(name) for name in names)
    for key, labels in (("y_train", train_labels), ("y_test", test_labels)):
        if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
            raise InputError(
                f"{key} in {str(file)!r} spans {labels.min()}..{labels.max()}, expected 0..{len(class_names) - 1} "
                f"for {len(class_names)} classes; renumber the labels from 0 or save class_names for every class"
            )
    return Dataset(file.stem, train_images, train_labels.astype(np.int32), test_images, test_labels.astype(np.int32), class_names)


def _read_member(archive: np.lib.npyio.NpzFile, key: str, file: Path) -> np.ndarray:
    try:
        # A zip member that is no .npy comes back as bytes; as an array its dtype is then refused with the others.
        return np.asarray(archive[key])
    except _UNREADABLE as error:
        # NumPy has no type of its own for this refusal, only this word in the text.
        if "allow_pickle" in str(error):
            raise InputError(
                f"{key} in {str(file)!r} is an object array, expected plain numbers or text: objects can run code and are never loaded; "
                "make all items one shape and save with a plain dtype"
            ) from error
        raise InputError(f"cannot read {key} in {str(file)!r} ({type(error).__name__}), expected a whole .npz; write it again") from error


def _as_nhwc(images: np.ndarray, key: str, file: Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise InputError(
            f"{key} in {str(file)!r} is {images.dtype}, expected uint8 pixels 0..255; "
            "for floats in [0, 1] save numpy.rint(255 * x).astype('uint8')"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"{key} in {str(file)!r} has shape {images.shape}, expected non-empty (n, H, W, C) or (n, H, W); reshape it")
    # Channels first would pass every later check and train on nonsense.
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise InputError(f"{key} in {str(file)!r} has shape {images.shape}, expected channels last; save x.transpose(0, 2, 3, 1)")
    return images


def _check_labels(labels: np.ndarray, num_images: int, key: str, file: Path) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(f"{key} in {str(file)!r} is {labels.dtype} {labels.shape}, expected integers (n,); save y.ravel().astype('int32')")
    if len(labels) != num_images:
        raise InputError(f"{key} in {str(file)!r} has {len(labels)} labels for {num_images} images, expected one each; check the pairing")


def _number_classes(labels: np.ndarray, file: Path) -> tuple[str, ...]:
    num_classes = max(int(labels.max()), 0) + 1
    # A stray label such as 2**31 must not become two thousand million names.
    if num_classes > len(labels):
        raise InputError(
            f"y_train in {str(file)!r} goes up to {num_classes - 1} with {len(labels)} images, expected classes numbered from 0; "
            "renumber the labels or save class_names"
        )
    return tuple(str(label) for label in range(num_classes))


SOURCES: dict[str, Callable[[str], Dataset]] = {"digits": _load_digits, "idx": _load_idx, "arrays": _load_arrays}
"""The sources by name, each a function of the path ("" where none is given)."""
