"""What a source of images is: named splits of images in a fixed order, with integer labels, as published.

A source reads lazily and decides nothing about sizes; `ssdd_jax.data.prepare` decodes, resizes and stores.
"""

import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssdd_jax.errors import DataError
from ssdd_jax.io.files import file_digest

SPLITS = ("train", "test", "unlabelled")
# Names of our splits in other dataset libraries; of several, the first with labels is taken.
PUBLISHED_SPLITS = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
# What systems and programs put next to a user's files, in lower case.
_CLUTTER = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "$recycle.bin", "system volume information"),
    *("recycler", "__macosx", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
}


def is_clutter(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or is a system's own, such as @eaDir of a NAS: nobody means it as data."""
    return name.startswith(".") or name.lower() in _CLUTTER


class EncodedImage(NamedTuple):
    """One image file.

    Attributes:
      index: its row in the split, 0..count-1.
      name: its path inside the archive or folder, used in messages and in the list of files.
      content: the file's bytes, or its path.
    """

    index: int
    name: str
    content: bytes | str

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""
        if isinstance(self.content, bytes):
            return self.content
        with open(self.content, "rb") as file:
            return file.read()


@dataclass(frozen=True)
class EncodedImages:
    """Image files (JPEG, PNG, WebP, ...) of any size.

    Attributes:
      count: number of files.
      read: yields each of them once, in any order; may be called again.
      channels: 1 or 3 converts them to that many; 0 goes by the first image.
    """

    count: int
    read: Callable[[], Iterator[EncodedImage]]
    channels: int = 0

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class PixelBlocks:
    """Images of one shape, too many to be held in memory.

    Attributes:
      shape: (n, H, W, C).
      read: yields them in order as uint8 blocks (b, H, W, C), b arbitrary; may be called again.
    """

    shape: tuple[int, int, int, int]
    read: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, eq=False)
class Split:
    """One split.

    Attributes:
      images: uint8 (n, H, W, C), or a way to read them piece by piece.
      labels: int32 (n,), each in 0..len(class_names)-1; None where there are none.
    """

    images: np.ndarray | PixelBlocks | EncodedImages
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset as it is published.

    Attributes:
      name: short name, used in reports.
      splits: by name, among `SPLITS`: train and test, or train alone, or unlabelled alone.
      class_names: one string per class, in label order; () where nothing is labelled.
      files: files that are read, for the manifest and to notice changes; not including image files in a folder.
      root: folder that `EncodedImage.content` paths lie in, if any.
      left_out: how many files or folders were not read, by what they are, such as {".heic files": 3}.
      overlap: one line on files that lie in two splits; "" where there are none.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    root: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    overlap: str = ""


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
      file: its published name, which it keeps in the data folder.
      url: where it is published.
      md5: its published (or widely used) checksum; "" where none is known.
    """

    file: str
    url: str = ""
    md5: str = ""


def locate(data_dir: Path, archives: Sequence[Archive], name: str, subfolder: str = "") -> list[Path]:
    """Return the paths of a dataset's published files in the data folder, or in a folder inside it.

    Raises:
      DataError: some are missing; the message gives the name, checksum and address of each.
    """
    folder = data_dir / subfolder
    missing = [archive for archive in archives if not (folder / archive.file).is_file()]
    if missing:
        described = "; ".join(
            f"{a.file}" + (f", md5 {a.md5}" if a.md5 else "") + (f", published at {a.url}" if a.url else "") for a in missing
        )
        raise DataError(
            f"{name}: {str(folder)!r} has no {', '.join(a.file for a in missing)} ({described}); "
            "put it there, name its folder with config.data.data_dir, "
            f"or run: python -m ssdd_jax.data download {name} --data_dir {shlex.quote(str(data_dir))}"
        )
    return [folder / archive.file for archive in archives]


def choose_splits(
    where: str, names: Collection[str], read_labels: Callable[[str], np.ndarray | None]
) -> dict[str, tuple[str, np.ndarray | None]]:
    """Choose which of a dataset's splits to take for train, test and unlabelled.

    Args:
      where: name of the dataset in the message.
      names: the splits it has; see `PUBLISHED_SPLITS` for those that are known.
      read_labels: returns a split's labels, integers (n,), -1 where one is missing or kept secret, or None if it has none.

    Returns:
      By split, its name among `names` and its labels; the unlabelled split has None.

    Raises:
      DataError: there is neither a train nor an unlabelled split.
    """
    chosen: dict[str, tuple[str, np.ndarray | None]] = {}
    for split, candidates in PUBLISHED_SPLITS.items():
        for name in [name for name in candidates if name in names]:
            labels = None if split == "unlabelled" else read_labels(name)
            if split != "test" or labels is None or np.any(labels >= 0):
                chosen[split] = name, labels
                break
    if not chosen.keys() & {"train", "unlabelled"}:
        raise DataError(f"{where} has the splits {', '.join(names) or '(none)'}, expected train or unlabelled; choose another dataset")
    return chosen


def damaged(file: Path, error: Exception | str, expected: str, archive: Archive | None = None) -> DataError:
    """Return the error for a file that is there but cannot be read; if a checksum is published, it says whether the file matches."""
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    checksum = ""
    if archive is not None and archive.md5 and os.access(file, os.R_OK):
        found = file_digest(file, "md5")
        checksum = f" (its md5 is {found}, the published one {archive.md5})" if found != archive.md5 else " (its md5 is the published one)"
    return DataError(f"cannot read {str(file)!r}: {reason}{checksum}; expected {expected}; download or write it again")
