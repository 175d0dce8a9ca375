"""Caltech-UCSD Birds-200-2011."""

import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Archive, EncodedImage, EncodedImages, Source, Split, damaged, locate
from ssdd_jax.errors import DataError

CUB200_ARCHIVES = (
    Archive(
        "CUB_200_2011.tgz",
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "97eceeb196236b17998738112f37df78",
    ),
)

_TOP = "CUB_200_2011"
_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
_EXPECTED = f"a gzipped tar with {_TOP}/images/CLASS/*.jpg and {', '.join(f'{_TOP}/{name}' for name in _LISTS)}"
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)


def open_cub200(data_dir: Path) -> Source:
    """Open the archive of CUB-200-2011: 5,994 train and 5,794 test images of any size and 200 classes, in the order of images.txt.

    A gzipped archive is read from its beginning, so opening may take as long as unpacking it, and images come in the archive's order.
    A missing image shows only when its split is read. Class 001.Black_footed_Albatross is named "Black footed Albatross".

    Raises:
      DataError: the archive is missing or damaged, or has other contents.
    """
    (file,) = locate(data_dir, CUB200_ARCHIVES, "cub200")
    tables: dict[str, list[list[str]]] = {}
    for member, content in _stream(file, {f"{_TOP}/{name}" for name in _LISTS}):
        try:
            tables[member.rpartition("/")[2]] = [line.split(maxsplit=1) for line in content.decode().splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise _refuse(file, f"{member} is not text") from error
    for name, table in tables.items():
        for row in table:
            if len(row) != 2 or (name in ("image_class_labels.txt", "train_test_split.txt") and not row[1].strip().isdecimal()):
                raise _refuse(file, f"{name} has the line {' '.join(row)!r}")
    images, labels, is_train, classes = ({key: value.strip() for key, value in tables[name]} for name in _LISTS)
    if not images or not images.keys() == labels.keys() == is_train.keys() or any(len(tables[name]) != len(images) for name in _LISTS[:3]):
        raise _refuse(file, f"{', '.join(_LISTS[:3])} number other images, or one twice")
    if len(set(images.values())) != len(images):
        raise _refuse(file, "images.txt has an image twice")
    if set(classes) != {str(number) for number in range(1, len(classes) + 1)} or not set(labels.values()) <= set(classes):
        raise _refuse(file, "classes.txt does not number from 1 the classes of image_class_labels.txt")
    splits = {}
    for split, flag in (("train", "1"), ("test", "0")):
        keys = [key for key in images if is_train[key] == flag]
        if not keys:
            raise _refuse(file, f"train_test_split.txt has no {split} image")
        members = [f"{_TOP}/images/{images[key]}" for key in keys]
        splits[split] = Split(_encoded(file, members), np.array([int(labels[key]) - 1 for key in keys], np.int32))
    names = (classes[str(number)] for number in range(1, len(classes) + 1))
    return Source("cub200", splits, tuple((name.partition(".")[2] or name).replace("_", " ") for name in names), (file,))


def _encoded(file: Path, members: list[str]) -> EncodedImages:
    rows = {member: index for index, member in enumerate(members)}

    def read() -> Iterator[EncodedImage]:
        for member, content in _stream(file, rows):
            yield EncodedImage(rows[member], member, content)

    return EncodedImages(len(members), read, channels=3)


def _stream(file: Path, members: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the contents of each member once, in archive order, and stop after the last; refuse an archive that lacks one of them."""
    missing = set(members)
    try:
        with tarfile.open(file, "r:gz") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                if name in missing and entry.isfile():
                    content = archive.extractfile(entry)
                    assert content is not None
                    missing.remove(name)
                    yield name, content.read()
                    if not missing:
                        return
    except _UNREADABLE as error:
        raise _refuse(file, error) from error
    # tarfile takes a damaged header for the end of the archive.
    raise _refuse(file, f"it has no {min(missing)!r}" + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""))


def _refuse(file: Path, reason: Exception | str) -> DataError:
    return damaged(file, reason, _EXPECTED, CUB200_ARCHIVES[0])
