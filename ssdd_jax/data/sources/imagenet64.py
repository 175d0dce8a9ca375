"""ImageNet at 64x64 pixels (Chrabaszcz, Loshchilov and Hutter, 2017), from its NumPy batches."""

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ssdd_jax.data.source import Archive, PixelBlocks, Source, Split, damaged, locate
from ssdd_jax.data.sources._npy import NpyArray, Npz
from ssdd_jax.errors import DataError

# image-net.org asks for an account; no md5 of these is known.
ARCHIVES = tuple(
    Archive(f"Imagenet64_{part}_npz.zip", f"https://image-net.org/data/downsample/Imagenet64_{part}_npz.zip")
    for part in ("train_part1", "train_part2", "val")
)
_BATCHES = (*[f"train_data_batch_{number}.npz" for number in range(1, 11)], "val_data.npz")
CLASS_NAMES = tuple(str(number) for number in range(1, 1001))
_PIXELS = 3 * 64 * 64


def open_imagenet64(data_dir: Path) -> Source:
    """Open the ten batches of training images, and the validation images as the test split.

    The batches are train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz, in `data_dir`, in the folders that the
    published zip archives unpack to there, or inside these archives in `data_dir`. Each batch inside an archive is inflated
    once more on opening, to find its labels, which come after 1.5 GB of pixels; unpacked batches open at once.

    The files do not name the classes, so they are named by their published numbers, "1" to "1000", in the order of the ILSVRC
    development kit: 1 is n02119789, kit fox. This is not the order of the sorted WordNet identifiers.
    """
    batches = _find_batches(data_dir)
    opened = [_open_batch(batch) for batch in batches]
    splits = {"train": _join(opened[:-1]), "test": _join(opened[-1:])}
    return Source("imagenet64", splits, CLASS_NAMES, tuple(dict.fromkeys(batch.file for batch in batches)))


def _find_batches(data_dir: Path) -> list[Npz]:
    zips = [data_dir / archive.file for archive in ARCHIVES]
    folders = [data_dir, *[file.with_suffix("") for file in zips]]
    found = {name: (folder / name, "") for name in _BATCHES for folder in reversed(folders) if (folder / name).is_file()}
    # Unpacked batches go first; which batches an archive holds is only known from inside it.
    for file in zips if len(found) < len(_BATCHES) else []:
        if file.is_file():
            try:
                with zipfile.ZipFile(file) as archive:
                    members = {PurePosixPath(member).name: member for member in archive.namelist()}
            except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
                raise damaged(file, error, "the complete published zip archive") from error
            found = {name: (file, members[name]) for name in _BATCHES if name in members} | found
    missing = [name for name in _BATCHES if name not in found]
    if len(missing) == len(_BATCHES):
        locate(data_dir, ARCHIVES, "imagenet64")
    if missing:
        raise DataError(
            f"imagenet64: {str(data_dir)!r} has no {', '.join(missing)}, expected {_BATCHES[0]} to {' and '.join(_BATCHES[-2:])}, "
            f"unpacked or inside {', '.join(archive.file for archive in ARCHIVES)}; put the missing files or their archives there"
        )
    return [Npz(*found[name]) for name in _BATCHES]


def _open_batch(batch: Npz) -> tuple[NpyArray, np.ndarray]:
    """Return a batch's pixels, not read yet, and its labels from 0."""
    pixels, numbers = batch.open("data"), batch.open("labels")
    if pixels.dtype != np.uint8 or len(pixels.shape) != 2 or pixels.shape[1] != _PIXELS or not pixels.nbytes:
        raise DataError(f"{pixels.name} is {pixels.dtype} {pixels.shape}, expected uint8 (n, {_PIXELS}); take the 64x64 batches")
    if numbers.dtype.kind not in "iu" or numbers.shape != pixels.shape[:1]:
        raise DataError(f"{numbers.name} is {numbers.dtype} {numbers.shape}, expected integers {pixels.shape[:1]}; download it again")
    labels = numbers.load()
    if labels.min() < 1 or labels.max() > len(CLASS_NAMES):
        raise DataError(f"{numbers.name} spans {labels.min()}..{labels.max()}, expected 1..{len(CLASS_NAMES)}; download it again")
    return pixels, (labels - 1).astype(np.int32)


def _join(batches: list[tuple[NpyArray, np.ndarray]]) -> Split:
    arrays = [pixels for pixels, _ in batches]
    count = sum(pixels.shape[0] for pixels in arrays)
    images = PixelBlocks((count, 64, 64, 3), partial(_read_images, arrays))
    return Split(images, np.concatenate([labels for _, labels in batches]))


def _read_images(arrays: list[NpyArray]) -> Iterator[np.ndarray]:
    for array in arrays:
        for rows in array.rows():
            yield np.ascontiguousarray(rows.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1))
