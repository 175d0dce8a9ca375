"""Stanford Dogs."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ssdd_jax.data.source import Archive, EncodedImage, EncodedImages, Source, Split, damaged, locate
from ssdd_jax.errors import DataError

DOGS_ARCHIVES = (
    Archive("images.tar", "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar", "1bb1f2a596ae7057f99d7d75860002ef"),
    Archive("lists.tar", "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar", "edbb9f16854ec66506b5f09b583e0656"),
)
DOGS_FOLDER = "stanford_dogs"
"""Folder in the data folder where the archives are looked for first, since any dataset's archives could have their names."""

_LISTS = {"train": "train_list.mat", "test": "test_list.mat"}
_EXPECTED_IMAGES = "a tar archive with Images/WNID-BREED/*.jpg"
_EXPECTED_LISTS = "a tar archive with train_list.mat and test_list.mat, each of file_list (a cell array of paths) and labels (from 1)"


def open_dogs(data_dir: Path) -> Source:
    """Open Stanford Dogs' two archives, in `data_dir`/stanford_dogs or `data_dir`: 12,000 train and 8,580 test images of 120 breeds.

    Images have any size and come in the order of the lists. A class is named after its breed, such as "Norfolk terrier".

    Raises:
      DataError: an archive is missing or damaged, or has other contents; the lists name an image twice, or one that is missing.
    """
    own = data_dir / DOGS_FOLDER
    subfolder = DOGS_FOLDER if any((own / archive.file).is_file() for archive in DOGS_ARCHIVES) else ""
    images_file, lists_file = locate(data_dir, DOGS_ARCHIVES, "dogs", subfolder)
    lists = _read_lists(lists_file)
    try:
        with tarfile.open(images_file, "r:") as archive:
            places = {entry.name.removeprefix("./"): (entry.offset_data, entry.size) for entry in archive if entry.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise damaged(images_file, error, _EXPECTED_IMAGES, DOGS_ARCHIVES[0]) from error
    splits = {}
    for split, (names, labels) in lists.items():
        members = [f"Images/{name}" for name in names]
        if missing := [member for member in members if member not in places]:
            raise damaged(
                images_file,
                f"it has no {missing[0]!r}, nor {len(missing) - 1} others, of the {len(names)} images in {_LISTS[split]}",
                f"{_EXPECTED_IMAGES} (if it is another dataset's, put the dogs' archives into {str(own)!r})",
                DOGS_ARCHIVES[0],
            )
        splits[split] = Split(_encoded(images_file, members, [places[member] for member in members]), labels)
    return Source("dogs", splits, _class_names(lists_file, lists), (images_file, lists_file))


def _encoded(file: Path, members: list[str], places: list[tuple[int, int]]) -> EncodedImages:
    def read() -> Iterator[EncodedImage]:
        try:
            with file.open("rb") as stream:
                for index, (member, (offset, size)) in enumerate(zip(members, places, strict=True)):
                    stream.seek(offset)
                    yield EncodedImage(index, member, stream.read(size))
        except OSError as error:
            raise damaged(file, error, _EXPECTED_IMAGES, DOGS_ARCHIVES[0]) from error

    return EncodedImages(len(members), read, channels=3)


def _read_lists(file: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return the paths and the int32 labels, from 0, of each split."""
    lists = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for split, member in _LISTS.items():
                entry = next((entry for entry in archive if entry.isfile() and entry.name.removeprefix("./") == member), None)
                content = archive.extractfile(entry) if entry else None
                if content is None:
                    raise ValueError(f"it has no {member}")
                table = loadmat(io.BytesIO(content.read()), variable_names=("file_list", "labels"))
                names = [str(cell.item()) for cell in table["file_list"].ravel()]
                labels = table["labels"].ravel()
                if not len(names) == len(labels) > 0 or labels.dtype.kind not in "uif" or labels.min() < 1 or (labels % 1).any():
                    raise ValueError(f"{member} has {len(names)} files and labels {labels.dtype} {labels.shape}")
                lists[split] = names, labels.astype(np.int32) - 1
    except Exception as error:  # A damaged .mat file can make scipy raise nearly every type.
        raise damaged(file, error, _EXPECTED_LISTS, DOGS_ARCHIVES[1]) from error
    seen: dict[str, str] = {}
    for split, (names, _) in lists.items():
        for name in names:
            if name in seen:
                raise damaged(file, f"splits overlap: {name!r} is in {_LISTS[seen[name]]} and again in {_LISTS[split]}", _EXPECTED_LISTS)
            seen[name] = split
    return lists


def _class_names(file: Path, lists: dict[str, tuple[list[str], np.ndarray]]) -> tuple[str, ...]:
    def refuse(reason: str) -> DataError:
        return damaged(file, reason, _EXPECTED_LISTS, DOGS_ARCHIVES[1])

    folders: dict[int, str] = {}
    for names, labels in lists.values():
        for name, label in zip(names, labels.tolist(), strict=True):
            folder = name.partition("/")[0]
            if folders.setdefault(label, folder) != folder:
                raise refuse(f"label {label + 1} is both {folders[label]!r} and {folder!r}")
    if sorted(folders) != list(range(len(folders))):
        raise refuse(f"the labels are not 1..{len(folders)} though they are {len(folders)}")
    if untrained := sorted(folders.keys() - set(lists["train"][1].tolist())):
        raise refuse(f"{_LISTS['train']} has no image of {folders[untrained[0]]!r}")
    return tuple((folders[label].partition("-")[2] or folders[label]).replace("_", " ") for label in range(len(folders)))
