"""Arrays that anyone can save with NumPy."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import SPLITS, PixelBlocks, Source, Split
from ssdd_jax.data.sources._npy import NpyArray, Npz, list_names, open_npy
from ssdd_jax.errors import DataError
from ssdd_jax.paths import local_path

KEYS = ("x_train", "y_train", "x_test", "y_test")
_ALL_KEYS = (*KEYS, "x_unlabelled", "class_names")
ROUNDING = 4
# A larger member of an .npz is read block by block.
_HELD_BYTES = 2**26


def open_arrays(argument: str, data_dir: Path) -> Source:
    """Open images and labels saved with NumPy.

    Args:
      argument: an .npz with x_train, y_train, x_test, y_test, optionally x_unlabelled and class_names; a folder with x_train.npy
        and so on; or one .npy of images without labels. The labels of both splits may be left out, and so may the test split.
        Images are (n, H, W, C) or (n, H, W), uint8 or floats x in [0, 1], which become 255 x, rounded half to even; what rounding
        has put outside, by at most `ROUNDING` units in the last place of 1, counts as 0 or 1. Labels are integers (n,) or (n, 1) from 0;
        without class_names, text or UTF-8 bytes, the classes are named by their numbers. Other arrays are ignored.
      data_dir: not used; `argument` is relative to the working directory, and ~ is the home folder.

    Raises:
      DataError: a file is missing or damaged, holds an object array, or is not a dataset. Floats outside [0, 1] in more than
        64 MB are found when the images are read.
    """
    if not argument:
        raise DataError(
            f"data source 'arrays' was given no path, expected an .npz file with {', '.join(KEYS)}, a folder of .npy files of these names "
            "or one .npy of images; write it as arrays:FILE"
        )
    path = Path(os.path.abspath(local_path(argument, "data source arrays:")))
    where, name, files = repr(str(path)), path.stem, (path,)
    if os.path.isdir(path):
        found = tuple(sorted(file.stem for file in path.glob("*.npy")))
        arrays = {key: open_npy(path / f"{key}.npy") for key in _ALL_KEYS if key in found}
        name, files = path.name or "arrays", tuple(path / f"{key}.npy" for key in arrays)
    elif not os.path.isfile(path):
        raise DataError(f"no file {where}, expected an .npz with {', '.join(KEYS)}; write one with numpy.savez_compressed")
    elif path.suffix == ".npy":
        found, arrays = ("x_train",), {"x_train": open_npy(path)}
    else:
        npz = Npz(path)
        found, arrays = npz.keys, {key: npz.open(key) for key in _ALL_KEYS if key in npz.keys}
    _check_keys(arrays.keys(), where, found)
    images = {split: _read_images(arrays[f"x_{split}"]) for split in SPLITS if f"x_{split}" in arrays}
    labels = {split: _read_labels(arrays[f"y_{split}"], len(images[split])) for split in ("train", "test") if f"y_{split}" in arrays}
    class_names = ()
    if labels:
        class_names = _read_names(arrays["class_names"]) if "class_names" in arrays else _number_classes(labels["train"], where)
    for split, numbers in labels.items():
        if int(numbers.min()) < 0 or int(numbers.max()) >= len(class_names):
            raise DataError(
                f"{arrays[f'y_{split}'].name} spans {numbers.min()}..{numbers.max()}, expected 0..{len(class_names) - 1} "
                f"for {len(class_names)} classes; renumber the labels from 0 or save class_names for every class"
            )
    splits = {split: Split(images[split], labels[split].astype(np.int32) if split in labels else None) for split in images}
    return Source(name, splits, class_names, files)


def _check_keys(given: set[str], where: str, found: tuple[str, ...]) -> None:
    needed = {
        "x_train": bool({"y_train", "x_test", "y_test"} & given) or "x_unlabelled" not in given,
        "y_train": bool({"y_test", "class_names"} & given),
        "x_test": "y_test" in given,
        "y_test": {"x_test", "y_train"} <= given,
    }
    missing = [key for key in KEYS if needed[key] and key not in given]
    if missing:
        raise DataError(
            f"{where} has no {', '.join(missing)} (it has {list_names(found)}), expected {', '.join(KEYS)}, where the test split, "
            "or the labels of both, may be left out; save what is missing with numpy.savez_compressed(path, x_train=..., ...)"
        )


def _read_images(array: NpyArray) -> np.ndarray | PixelBlocks:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(
            f"{array.name} is {array.dtype}, expected uint8 pixels 0..255 or floats in [0, 1]; for numbers 0..255 save x.astype('uint8')"
            + (", for booleans 255 * x.astype('uint8')" if array.dtype == bool else "")
        )
    shape = (*array.shape, 1) if len(array.shape) == 3 else array.shape
    if len(shape) != 4 or 0 in shape:
        raise DataError(f"{array.name} has shape {array.shape}, expected non-empty (n, H, W, C) or (n, H, W); reshape it")
    # Channels first would pass every later check and train on nonsense.
    if shape[1] in (1, 3) and shape[3] > 4:
        raise DataError(f"{array.name} has shape {array.shape}, expected channels last; save x.transpose(0, 2, 3, 1)")
    if array.dtype == np.uint8 and (array.file is not None or array.nbytes <= _HELD_BYTES):
        return array.load().reshape(shape)
    blocks = PixelBlocks(shape, partial(_pixel_blocks, array, shape))
    return np.concatenate(list(blocks.read())) if array.nbytes <= _HELD_BYTES else blocks


def _pixel_blocks(array: NpyArray, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    start = 0
    for rows in array.rows():
        rows = rows.reshape(-1, *shape[1:])
        yield rows if rows.dtype == np.uint8 else _to_pixels(rows, start, array.name)
        start += len(rows)


def _to_pixels(images: np.ndarray, start: int, name: str) -> np.ndarray:
    # In float64, 255 x is exact for floats of up to 32 bits, so that it is rounded only once.
    values = images.astype(np.float64)
    # Of 64 bits or not, they were mostly computed in 32.
    slack = ROUNDING * float(max(np.finfo(images.dtype).eps, np.finfo(np.float32).eps))
    # A comparison with NaN is false.
    inside = (values >= -slack) & (values <= 1.0 + slack)
    if not inside.all():
        first = int(np.argmin(inside))
        raise DataError(
            f"image {start + first // inside[0].size} of {name} holds {values.flat[first]:.6g}, expected numbers in [0, 1]; "
            "repair the image or leave it out, or for numbers 0..255 save x.astype('uint8')"
        )
    return np.rint(255.0 * values.clip(0.0, 1.0)).astype(np.uint8)


def _label_advice(array: NpyArray) -> str:
    if array.dtype.kind in "US":
        return "number the classes: class_names, y = numpy.unique(y, return_inverse=True)"
    if len(array.shape) == 2 and array.shape[1] > 1:
        return "of one-hot rows save y.argmax(1)"
    return "save y.ravel().astype('int32')"


def _read_labels(array: NpyArray, num_images: int) -> np.ndarray:
    if array.dtype.kind not in "iu" or not _is_list(array):
        raise DataError(f"{array.name} is {array.dtype} {array.shape}, expected integers (n,) or (n, 1); {_label_advice(array)}")
    if array.shape[0] != num_images:
        raise DataError(f"{array.name} has {array.shape[0]} labels for {num_images} images, expected one each; check the pairing")
    return np.array(array.load()).ravel()


def _is_list(array: NpyArray) -> bool:
    # Keras and MATLAB keep lists as columns.
    return len(array.shape) == 1 or array.shape[1:] == (1,)


def _read_names(array: NpyArray) -> tuple[str, ...]:
    if not _is_list(array) or array.dtype.kind not in "US" or not array.shape[0]:
        raise DataError(f"{array.name} is {array.dtype} {array.shape}, expected a list of text; save numpy.array(names, dtype=str)")
    try:
        return tuple(name.decode() if isinstance(name, bytes) else name for name in array.load().ravel().tolist())
    except UnicodeDecodeError as error:
        raise DataError(f"{array.name} holds {error.object!r}, expected text or UTF-8; save numpy.array(names, dtype=str)") from error


def _number_classes(labels: np.ndarray, where: str) -> tuple[str, ...]:
    num_classes = max(int(labels.max()), 0) + 1
    # A stray label such as 2**31 must not become two billion names.
    if num_classes > len(labels):
        raise DataError(
            f"y_train in {where} goes up to {num_classes - 1} with {len(labels)} images, expected classes numbered from 0; "
            "renumber the labels or save class_names"
        )
    return tuple(str(label) for label in range(num_classes))
