"""Tiny ImageNet."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Archive, EncodedImage, EncodedImages, Source, Split, damaged, locate

TINY_IMAGENET_ARCHIVES = (
    Archive("tiny-imagenet-200.zip", "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
)

_TOP = "tiny-imagenet-200"
_EXPECTED = f"a zip archive with {_TOP}/wnids.txt, words.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, RuntimeError)


def open_tiny_imagenet(data_dir: Path) -> Source:
    """Open Tiny ImageNet's archive: 100,000 train and 10,000 test images of 64x64 pixels and 200 classes.

    The test split is the published validation images, by val_annotations.txt: the published test images have no labels and are not
    used. Classes are numbered, and images ordered, as in an image folder: by sorted WordNet id, not in the order of wnids.txt,
    and by sorted file name (test as if it were in class folders too). A class is named by its first name in words.txt.

    Raises:
      DataError: the archive is missing or damaged, or has other contents.
    """
    (file,) = locate(data_dir, TINY_IMAGENET_ARCHIVES, "tiny_imagenet")

    def refuse(reason: Exception | str) -> Exception:
        return damaged(file, reason, _EXPECTED, TINY_IMAGENET_ARCHIVES[0])

    def encoded(members: list[str]) -> EncodedImages:
        def read() -> Iterator[EncodedImage]:
            try:
                with zipfile.ZipFile(file) as archive:
                    for index, member in enumerate(members):
                        yield EncodedImage(index, member, archive.read(member))
            except _UNREADABLE as error:
                raise refuse(error) from error

        return EncodedImages(len(members), read, channels=3)

    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            wnids_text, words, annotations = (
                archive.read(f"{_TOP}/{name}").decode() for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")
            )
    except (*_UNREADABLE, KeyError) as error:
        raise refuse(error) from error
    wnids = sorted(set(wnids_text.split()))
    if not wnids:
        raise refuse("wnids.txt is empty")
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    train, val = [], set()
    for member in members:
        match member.split("/"):
            case [top, "train", wnid, "images", name] if top == _TOP and name:
                train.append((wnid, member))
            case [top, "val", "images", name] if top == _TOP and name:
                val.add(member)
    test = []
    for line in annotations.splitlines():
        name, _, rest = line.partition("\t")
        test.append((rest.partition("\t")[0], f"{_TOP}/val/images/{name}"))
    if len({member for _, member in test}) != len(test):
        raise refuse("val_annotations.txt names an image twice")
    if different := sorted(val ^ {member for _, member in test}):
        raise refuse(f"{different[0]!r} is {'not in val_annotations.txt' if different[0] in val else 'missing'}")
    if without := sorted(set(wnids) - {wnid for wnid, _ in train}):
        raise refuse(f"the class {without[0]!r} of wnids.txt has no train images")
    if unknown := sorted({wnid for wnid, _ in train + test} - set(wnids)):
        raise refuse(f"the class {unknown[0]!r} is not in wnids.txt")
    names = {wnid: name for wnid, _, name in (line.partition("\t") for line in words.splitlines())}
    splits = {}
    for split, rows in (("train", sorted(train)), ("test", sorted(test))):
        splits[split] = Split(encoded([member for _, member in rows]), np.array([numbers[wnid] for wnid, _ in rows], np.int32))
    class_names = tuple(names.get(wnid, "").partition(",")[0].strip() or wnid for wnid in wnids)
    return Source("tiny_imagenet", splits, class_names, (file,))
