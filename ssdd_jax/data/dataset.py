"""The dataset held in memory, and the pure functions on it: split, pad, colours, statistics, fingerprint."""

import dataclasses
import hashlib
import json

import numpy as np

from ssdd_jax.errors import InputError

_BLOCK_IMAGES = 4096


# eq=False: comparing arrays has no single truth value; `fingerprint` is how two datasets are compared.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Hold labelled images with an official train/test split.

    Attributes:
      name: short name, used in reports and in the fingerprint.
      train_images: uint8 (n, H, W, C), pixels 0..255.
      train_labels: int32 (n,), each in 0..len(class_names)-1.
      test_images: uint8 (n_test, H, W, C), the same H, W, C as train_images.
      test_labels: int32 (n_test,), each in 0..len(class_names)-1.
      class_names: one string a class, in label order.

    Raises:
      InputError: a wrong type, rank, length, image shape or label, or an empty split.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = self.class_names
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"dataset {self.name!r}: class_names is a {type(names).__name__}, expected a non-empty tuple of str; give one name a class"
            )
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            where = f"dataset {self.name!r}: {split}"
            _check_array(f"{where}_images", images, np.uint8, 4, "(n, H, W, C) with pixels 0..255")
            _check_array(f"{where}_labels", labels, np.int32, 1, "(n,)")
            if 0 in images.shape:
                raise InputError(f"{where}_images has shape {images.shape}, expected a non-empty image or more; check the source's files")
            if len(images) != len(labels):
                raise InputError(f"{where} has {len(images)} images and {len(labels)} labels, expected as many of each; check the pairing")
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(names):
                raise InputError(
                    f"{where}_labels span {low}..{high}, expected 0..{len(names) - 1} for {len(names)} class names; "
                    "renumber the labels or name every class"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise InputError(
                f"dataset {self.name!r}: train images are {_shape_text(self.train_images)} and test images "
                f"{_shape_text(self.test_images)}, expected one shape; resize one of them"
            )


def split_validation(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Hold out a fixed pseudo-random part of the train split.

    Depends on the number of train images, `fraction` and `seed` alone; both parts keep the original order.

    Args:
      dataset: n train images; the test split is passed on untouched.
      fraction: share of the train images to hold out, in (0, 1); round(fraction * n) images move.
      seed: 0..2**32-1.

    Returns:
      The dataset without the held-out images; the held-out images, uint8 (v, H, W, C); their labels, int32 (v,).

    Raises:
      InputError: a fraction or seed out of range, or one that leaves either part empty.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"validation fraction is {fraction}, expected more than 0 and less than 1; try 0.1")
    if not 0 <= seed < 2**32:
        raise InputError(f"validation seed is {seed}, expected 0..{2**32 - 1}; choose another")
    count = len(dataset.train_images)
    num_held = round(fraction * count)
    if not 0 < num_held < count:
        raise InputError(
            f"validation fraction {fraction} of {count} train images holds out {num_held}, "
            "expected at least 1 on either side; change the fraction"
        )
    # RandomState, not default_rng: NumPy freezes its stream, so the split is the same under every NumPy version.
    held = np.zeros(count, dtype=bool)
    held[np.random.RandomState(seed).permutation(count)[:num_held]] = True
    reduced = dataclasses.replace(dataset, train_images=dataset.train_images[~held], train_labels=dataset.train_labels[~held])
    return reduced, dataset.train_images[held], dataset.train_labels[held]


def pad_images(dataset: Dataset, size: int) -> Dataset:
    """Surround every image with zeros up to size x size, such as 28 -> 32.

    The image stays in the middle; where the difference is odd, the extra row or column goes to the bottom or right.

    Args:
      dataset: images of H x W pixels.
      size: the new height and width in pixels, at least max(H, W).

    Raises:
      InputError: size is smaller than the images.
    """
    height, width = dataset.train_images.shape[1:3]
    if size < max(height, width):
        raise InputError(
            f"size is {size} but the images of {dataset.name!r} are {height}x{width}, expected at least {max(height, width)}: "
            "padding never shrinks; resize the images beforehand or use size 0 to keep them as they are"
        )
    if size == height == width:
        return dataset
    top, left = (size - height) // 2, (size - width) // 2
    widths = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return dataclasses.replace(dataset, train_images=np.pad(dataset.train_images, widths), test_images=np.pad(dataset.test_images, widths))


def convert_channels(dataset: Dataset, channels: int) -> Dataset:
    """Repeat a grey channel three times, or take the luma of RGB (ITU-R 601, rounded), as Pillow's mode conversions do.

    Args:
      dataset: images of 1 or 3 channels.
      channels: 1 or 3.

    Raises:
      InputError: the images have another number of channels, or another number is asked for.
    """
    found = dataset.train_images.shape[-1]
    if found not in (1, 3) or channels not in (1, 3):
        raise InputError(f"{dataset.name!r} has {found} channels and {channels} are asked for, expected 1 or 3 of either; use channels 0")
    if found == channels:
        return dataset

    def convert(images: np.ndarray) -> np.ndarray:
        if channels == 3:
            return np.repeat(images, 3, axis=-1)
        weights = np.array([19595, 38470, 7471], np.uint32)  # .299, .587, .114 of 65,536
        return ((images.astype(np.uint32) @ weights + 32768) >> 16).astype(np.uint8)[..., None]

    return dataclasses.replace(dataset, train_images=convert(dataset.train_images), test_images=convert(dataset.test_images))


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute every channel's mean and population standard deviation over all pixels of all images.

    Args:
      images: uint8 (n, H, W, C), n >= 1.

    Returns:
      Mean and standard deviation, both float64 (C,), in units of [0, 1] (pixel / 255).

    Raises:
      InputError: images are not uint8 of rank 4, or empty.
    """
    _check_array("images", images, np.uint8, 4, "(n, H, W, C)")
    if 0 in images.shape:
        raise InputError(f"images has shape {images.shape}, expected a non-empty image or more; check the source's files")
    # Pixels have 256 values: counting them is exact, and a block at a time needs no float64 copy of the dataset.
    counts = np.zeros((images.shape[-1], 256), dtype=np.int64)
    for start in range(0, len(images), _BLOCK_IMAGES):
        block = images[start : start + _BLOCK_IMAGES]
        for channel in range(images.shape[-1]):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256, dtype=np.float64) / 255.0
    num_pixels = counts.sum(axis=1)
    mean = counts @ values / num_pixels
    variance = (counts * np.square(values - mean[:, None])).sum(axis=1) / num_pixels
    return mean, np.sqrt(variance)


def fingerprint(dataset: Dataset) -> str:
    """Hash all that the dataset holds: sha256 over its name, class names, shapes and bytes, as 64 hex digits."""
    arrays = {
        "train_images": dataset.train_images,
        "train_labels": dataset.train_labels,
        "test_images": dataset.test_images,
        "test_labels": dataset.test_labels,
    }
    # The header fixes every length, so that no two datasets run into the same byte stream.
    header = {"name": dataset.name, "class_names": dataset.class_names, "shapes": {key: array.shape for key, array in arrays.items()}}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _check_array(name: str, array: object, dtype: type, ndim: int, layout: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        raise InputError(f"{name} is {_kind(array)}, expected a NumPy {np.dtype(dtype)} array {layout}; convert it first")


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _shape_text(images: np.ndarray) -> str:
    return "x".join(str(length) for length in images.shape[1:])
