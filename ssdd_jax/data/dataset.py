"""A prepared dataset, and pure functions on it: rows, channels, validation split, statistics."""

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from ssdd_jax.errors import DataError, InputError

_BLOCK_BYTES = 2**25


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """One split of a prepared dataset.

    Attributes:
      images: uint8 (n, H, W, C), memory-mapped.
      labels: int32 (n,), or None.
      groups: int64 (n,), for every image the row of the first that equals it; None where no two are equal.
    """

    images: np.ndarray
    labels: np.ndarray | None
    groups: np.ndarray | None = None


# eq=False: comparing arrays has no single truth value; two datasets are compared by their fingerprints.
@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset.

    Attributes:
      name: short name, used in reports.
      splits: by name, among `ssdd_jax.data.source.SPLITS`, with the same H, W, C in all.
      class_names: one string per class, in label order; () where nothing is labelled.
      fingerprint: 64 hex digits, a digest of all pixels and labels, whatever they were read from.
      folder: where it is stored.
    """

    name: str
    splits: Mapping[str, StoredSplit]
    class_names: tuple[str, ...]
    fingerprint: str
    folder: Path


class OnDisk:
    """Some rows of an array that stays on disk; each access reads what it asks for and keeps nothing.

    Args:
      array: memory-mapped array "N ...".
      rows: which of its rows, int "n"; None means all.
    """

    def __init__(self, array: np.memmap, rows: np.ndarray | None = None):
        self._array, self._rows = array, rows
        self.shape = (len(array) if rows is None else len(rows), *array.shape[1:])
        self.dtype, self.ndim = array.dtype, array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Return how many bytes they take."""
        return prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Return the rows at a slice or at an integer array, in memory."""
        found = np.array(self._array[index if self._rows is None else self._rows[index]])
        # Pages that were read are dropped from this process's memory; the system caches them as long as it has room.
        if isinstance(mapping := getattr(self._array, "_mmap", None), mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
        return found

    def select(self, rows: np.ndarray) -> "OnDisk":
        """Return some of the rows, without reading them."""
        return OnDisk(self._array, rows if self._rows is None else self._rows[rows])


class Concatenated:
    """The rows of several arrays of one shape "n ...", one array after the other, by integer index."""

    def __init__(self, arrays: Sequence[np.ndarray | OnDisk]):
        self._arrays = arrays
        self.shape = (len(arrays) * len(arrays[0]), *arrays[0].shape[1:])
        self.dtype, self.ndim = arrays[0].dtype, arrays[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Return the rows at an integer array of any shape, in memory."""
        which, row = np.divmod(index, len(self._arrays[0]))
        found = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        for i in np.unique(which):
            found[which == i] = self._arrays[i][row[which == i]]
        return found


Images = np.ndarray | OnDisk
"""Arrays of rows, in memory or on disk: `len`, `shape`, slices and integer arrays."""


def take_rows(array: np.ndarray, rows: np.ndarray | None, in_memory: bool) -> Images:
    """Return the rows of a memory-mapped array, copied into memory or left on disk; None means all."""
    if not in_memory and isinstance(array, np.memmap):
        return OnDisk(array, rows)
    return np.array(array) if rows is None else np.asarray(array[rows])


def select_rows(images: Images, rows: np.ndarray) -> Images:
    """Return some rows; rows on disk stay there."""
    return images.select(rows) if isinstance(images, OnDisk) else images[rows]


def validation_rows(count: int, fraction: float, seed: int = 0, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fixed pseudo-random part of the rows.

    Args:
      count: number of training images.
      fraction: fraction to hold out, in (0, 1); round(fraction * count) rows.
      seed: 0..2**32-1.
      groups: int (count,), equal for rows that must stay together. They are held out in the order in which they are drawn, those that
        are larger than what is left to hold out being passed over, so that there may be fewer rows. None: every row is alone.

    Returns:
      The rows that remain and those held out, each ascending, int64.

    Raises:
      InputError: a fraction or seed out of range, or one that leaves either part empty.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"validation fraction is {fraction}, expected more than 0 and less than 1; try 0.1")
    if not 0 <= seed < 2**32:
        raise InputError(f"validation seed is {seed}, expected 0..{2**32 - 1}; choose another")
    num_held = round(fraction * count)
    # RandomState, not default_rng: NumPy freezes its stream, so the split is the same under every NumPy version.
    drawn = np.random.RandomState(seed).permutation(count)
    held = np.zeros(count, dtype=bool)
    if groups is None:
        held[drawn[:num_held]] = True
    else:
        _, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        chosen, left = np.zeros(len(sizes), dtype=bool), num_held
        for group in dict.fromkeys(which[drawn].tolist()):
            if sizes[group] <= left:
                chosen[group], left = True, left - sizes[group]
            if not left:
                break
        held = chosen[which]
    if not 0 < held.sum() < count:
        among = "" if groups is None else f", {len(sizes)} of them distinct,"
        raise InputError(
            f"validation fraction {fraction} of {count} train images{among} holds out {held.sum()}, "
            "expected at least 1 on either side; change the fraction"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def convert_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Repeat a grey channel three times, or take the luma of RGB (ITU-R 601, rounded), as Pillow's mode conversion does.

    Args:
      images: uint8 (..., C) with C 1 or 3.
      channels: 1 or 3; if it equals C, nothing changes, whatever C is.

    Raises:
      DataError: the images have another number of channels, or `channels` is another number.
    """
    found = images.shape[-1]
    if found == channels:
        return images
    if found not in (1, 3) or channels not in (1, 3):
        raise DataError(f"images have {found} channels and {channels} are asked for, expected 1 or 3 for both; use channels 0")
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], np.uint32)  # .299, .587, .114 of 65,536
    return ((images.astype(np.uint32) @ weights + 32768) >> 16).astype(np.uint8)[..., None]


def count_pixels(images: np.ndarray) -> np.ndarray:
    """Count the values of every channel's pixels: uint8 (n, H, W, C) -> int64 (C, 256)."""
    # Pillow counts a plane several times faster than NumPy, and RGB in one pass.
    if images.shape[-1] == 3:
        rows = np.ascontiguousarray(images).reshape(-1, images.shape[2], 3)
        return np.array(Image.fromarray(rows).histogram(), np.int64).reshape(3, 256)
    planes = [np.ascontiguousarray(images[..., channel]).reshape(-1, images.shape[2]) for channel in range(images.shape[-1])]
    return np.array([Image.fromarray(plane).histogram() for plane in planes], np.int64)


def statistics_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every channel's mean and population standard deviation, float64 (C,) in units of [0, 1], from `count_pixels`."""
    # Pixels have 256 values: counting them is exact.
    values = np.arange(256, dtype=np.float64) / 255.0
    num_pixels = counts.sum(axis=1)
    mean = counts @ values / num_pixels
    variance = (counts * np.square(values - mean[:, None])).sum(axis=1) / num_pixels
    return mean, np.sqrt(variance)


def channel_statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Compute every channel's mean and population standard deviation over all pixels of all images, block by block.

    Args:
      images: uint8 (n, H, W, C), n >= 1.

    Returns:
      Mean and standard deviation, both float64 (C,), in units of [0, 1] (pixel / 255).

    Raises:
      DataError: images are not uint8 of rank 4, or empty.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(f"images are {images.dtype} {images.shape}, expected uint8 (n, H, W, C), not empty; convert them first")
    counts = np.zeros((images.shape[-1], 256), dtype=np.int64)
    block = max(1, _BLOCK_BYTES // prod(images.shape[1:]))
    for start in range(0, len(images), block):
        counts += count_pixels(images[start : start + block])
    return statistics_of(counts)


def array_digest(array: Images) -> str:
    """Return the sha256 of an array's bytes in little-endian order, read block by block."""
    digest = hashlib.sha256()
    rows = max(1, _BLOCK_BYTES // max(1, prod(array.shape[1:]) * array.dtype.itemsize))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows], dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
