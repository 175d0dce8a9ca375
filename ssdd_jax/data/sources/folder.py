"""Folders of image files."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import SPLITS, EncodedImage, EncodedImages, Source, Split, is_clutter
from ssdd_jax.errors import DataError
from ssdd_jax.paths import local_path

# All that Pillow has for the formats that are decoded, except pfm, which holds floating-point pixels.
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jfif", "jpe", "apng", "pbm", "pnm")
SPLIT_LIST = "split.csv"

_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
# Names of a split's folder, in lower case; the first group that occurs is taken, and must occur under one name only.
_SPLIT_FOLDERS = {
    "train": (("train", "training"),),
    "test": (("test", "testing"), ("val", "validation", "valid")),
    "unlabelled": (("unlabelled", "unlabeled"),),
}
_RESERVED = {name for groups in _SPLIT_FOLDERS.values() for group in groups for name in group}
_EXPECTED = "ROOT/train/CLASS/*.png with ROOT/test/CLASS/*.png, or ROOT/CLASS/*.png, or ROOT/*.png"


def open_folder(argument: str, data_dir: Path) -> Source:
    """Open a folder of image files: those with one of `EXTENSIONS`, in upper or lower case.

    Layouts:
      ROOT/train/CLASS/*.png, ROOT/test/CLASS/*.png: both splits, with labels; the folders may be called `training` and `testing`, in upper
        or lower case. Without a test folder, or where it has no classes, one of `val`, `validation` and `valid` is the test
        split; next to one, it is not used.
        ROOT/unlabelled (or `unlabeled`) holds images without labels, with or without the others.
      ROOT/CLASS/*.png: a train split with labels.
      ROOT/*.png: a train split without labels.
      Either of the last two with ROOT/split.csv: its header is file,split, the paths are relative to ROOT, the splits are train, test
        and unlabelled. Images that it does not list are not used.

    Images may lie deeper below the folder of their class or split. Classes are those of train, numbered in the order of their sorted
    names; files are sorted by path. Links are followed. Left out, and counted in `Source.left_out`, are hidden files and folders, those of
    systems (`ssdd_jax.data.source.is_clutter`) at any depth, files of other types, and images that lie in no split. Files that are in two
    splits through links are named in `Source.overlap`.

    Args:
      argument: ROOT.
      data_dir: not used; every source takes it.

    Raises:
      DataError: there is no such folder, or it has another layout, a class without images, a single class, a test class that is not in
        train, or a split list that names a file twice or one that does not exist.
    """
    if not argument:
        raise DataError(f"data source 'folder' was given no folder, expected one with images: {_EXPECTED}; write it as folder:ROOT")
    root = Path(os.path.abspath(local_path(argument, "data source folder:")))
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{str(root)!r} {found}, expected a folder with {_EXPECTED}; correct the path, or unpack the archive first")
    images, resolved, left_out = _list_images(root)
    if not images:
        raise _wrong_layout(root, f"no image ({', '.join(EXTENSIONS)})")
    folders = _folders(root)
    reserved = [folder for folder in folders if folder.lower() in _RESERVED]
    files = (root / SPLIT_LIST,) if (root / SPLIT_LIST).is_file() else ()
    # Number of folder levels above the class folders.
    depth = 0
    if files:
        if reserved and reserved == folders:
            raise DataError(f"{str(root)!r} has both {SPLIT_LIST} and the folders {_some(folders)}, expected one of the two; remove one")
        splits = _read_split_list(files[0], set(images))
    elif reserved:
        splits, depth = _by_split_folder(root, reserved, images), 1
    else:
        splits = {"train": images}
    left_out["images in no split"] = len(images) - sum(map(len, splits.values()))
    class_names = _class_names(root, splits, depth, is_whole=not files)
    numbers = {name: number for number, name in enumerate(class_names)}

    def split_of(split: str, names: list[str]) -> Split:
        def read() -> Iterator[EncodedImage]:
            for index, name in enumerate(names):
                yield EncodedImage(index, name, f"{root}{os.sep}{name}")

        has_labels = class_names and split != "unlabelled"
        labels = np.array([numbers[name.split(os.sep, depth + 1)[depth]] for name in names], np.int32) if has_labels else None
        return Split(EncodedImages(len(names), read), labels)

    return Source(
        root.name or "folder",
        {s: split_of(s, splits[s]) for s in SPLITS if s in splits},
        class_names,
        files,
        root,
        left_out=+left_out,
        overlap=_overlap(root, splits, resolved),
    )


def _list_images(root: Path) -> tuple[list[str], dict[str, str], Counter[str]]:
    """Return all images' paths relative to the root, sorted, the resolved paths of those reached through a link, and what is left out."""
    images, resolved, left_out = [], {}, Counter()
    # A folder's path relative to the root, and the resolved paths of it and all folders above it, which reveal loops.
    real_root = os.path.realpath(root)
    pending = [("", (real_root,))]
    while pending:
        folder, above = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if is_clutter(entry.name):
                        kind = "folders" if entry.is_dir() else "files"
                        left_out[f"hidden {kind}" if entry.name.startswith(".") else f"{kind} {entry.name!r}"] += 1
                        continue
                    path = os.path.join(folder, entry.name)
                    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                    if entry.is_dir():
                        if real in above:
                            raise DataError(f"{entry.path!r} links to a folder that contains it, expected no loops; remove the link")
                        pending.append((path, (*above, real)))
                    elif entry.name.lower().endswith(_SUFFIXES):
                        if not entry.is_file():
                            raise DataError(f"{entry.path!r} is a broken link or not a plain file, expected an image; remove it")
                        images.append(path)
                        if real != os.path.join(real_root, path):
                            resolved[path] = real
                    elif path != SPLIT_LIST:
                        extension = os.path.splitext(entry.name)[1].lower()
                        left_out[f"{extension} files" if extension.isprintable() and extension else "other files"] += 1
        except OSError as error:
            raise DataError(
                f"cannot list {os.path.join(root, folder)!r} ({error.strerror}), expected a readable folder; check its permissions"
            ) from error
    return sorted(images, key=_components), resolved, left_out


def _components(path: str) -> list[str]:
    # Sorting by components keeps the images of one class together, whatever characters its name has.
    return path.split(os.sep)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_clutter(entry.name))


def _by_split_folder(root: Path, reserved: list[str], images: list[str]) -> dict[str, list[str]]:
    by_folder: dict[str, list[str]] = {}
    for name in images:
        by_folder.setdefault(name.partition(os.sep)[0] if os.sep in name else "", []).append(name)
    if stray := [folder for folder in by_folder if folder not in reserved]:
        raise _wrong_layout(
            root,
            f"images {f'in {_some(stray)} ' if stray[0] else ''}next to the split folders {_some(reserved)}",
            f"move them away, or if these are names of classes, put all of them into ROOT/train or write ROOT/{SPLIT_LIST} (file,split)",
        )
    has_classes = lambda folder: any(name.count(os.sep) > 1 for name in by_folder[folder])
    splits: dict[str, list[str]] = {}
    for split, groups in _SPLIT_FOLDERS.items():
        found = [there for group in groups if (there := [folder for folder in reserved if folder.lower() in group])]
        # Test images without labels, as competitions publish them, do not hide a labelled validation folder.
        found.sort(key=lambda there: all(folder in by_folder and not has_classes(folder) for folder in there))
        folders = found[0] if found else []
        if len(folders) > 1:
            raise DataError(f"{str(root)!r} has the folders {_some(folders)}, expected one {split} split; rename or remove all but one")
        if folders:
            if folders[0] not in by_folder:
                raise _wrong_layout(root, f"no image in {folders[0]!r}")
            splits[split] = by_folder[folders[0]]
    if "test" in splits and "train" not in splits:
        raise _wrong_layout(root, "a test split and no folder 'train'")
    return splits


def _read_split_list(file: Path, images: set[str]) -> dict[str, list[str]]:
    try:
        # surrogateescape is how Python reads file names that are not UTF-8; the byte order mark is what Excel writes.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {str(file)!r} ({type(error).__name__}: {error}), expected a CSV file; write it again") from error
    if header != ["file", "split"]:
        raise DataError(f"{str(file)!r} begins with {','.join(header)[:80]!r}, expected the header 'file,split'; correct it")
    chosen: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        where = f"row {number} of {str(file)!r}"
        if len(row) != 2 or row[1] not in SPLITS:
            raise DataError(f"{where} is {','.join(row)!r}, expected FILE,SPLIT with one of {', '.join(SPLITS)}; correct it")
        name, split = os.path.normpath(row[0]), row[1]
        if name not in images:
            raise DataError(
                f"{where} names {row[0]!r}, expected an image ({', '.join(EXTENSIONS)}) in {str(file.parent)!r}; "
                "write paths relative to that folder"
            )
        if name in chosen:
            raise DataError(
                f"splits overlap: {where} puts {row[0]!r} into {split}, an earlier one into {chosen[name]}, expected every file once; "
                "remove one of the rows"
            )
        chosen[name] = split
    there = set(chosen.values())
    splits = {split: sorted((name for name in chosen if chosen[name] == split), key=_components) for split in SPLITS if split in there}
    if not splits or ("test" in splits and "train" not in splits):
        raise DataError(f"{str(file)!r} lists {'test and no train images' if splits else 'no image'}, expected some; add CLASS/1.png,train")
    return splits


def _overlap(root: Path, splits: Mapping[str, list[str]], resolved: Mapping[str, str]) -> str:
    """Return one line on a file that is in two splits through a link; "" if there is none."""
    # Without links, different paths are different files (a hard link counts as a copy).
    if not resolved:
        return ""
    real_root = os.path.realpath(root)
    seen: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            other_split, other = seen.setdefault(resolved.get(name) or os.path.join(real_root, name), (split, name))
            if other_split != split:
                return (
                    f"splits overlap: {name!r} ({split}) and {other!r} ({other_split}) in {str(root)!r} are one file through a link, "
                    "expected every file in one split; remove one of them"
                )
    return ""


def _class_names(root: Path, splits: Mapping[str, list[str]], depth: int, is_whole: bool) -> tuple[str, ...]:
    """Return the classes of train, sorted; () where there are no labels. `is_whole`: every folder of train is a class."""
    classes: dict[str, set[str]] = {}
    flat = []
    for split in [split for split in splits if split != "unlabelled"]:
        parts = [name.split(os.sep, depth + 1) for name in splits[split]]
        classes[split] = {part[depth] for part in parts if len(part) == depth + 2}
        flat += [os.sep.join(part) for part in parts if len(part) < depth + 2]
    if not any(classes.values()) and not (flat and depth):
        return ()
    if flat:
        raise _wrong_layout(root, f"{min(flat)!r} outside class folders")
    if unknown := sorted(classes.get("test", set()) - classes["train"]):
        raise _wrong_layout(root, f"test images of {_some(unknown)} and no train images of them", "use the same class folders in both")
    train = root / _components(splits["train"][0])[0] if depth else root
    empty = [str(train / folder) for folder in _folders(train) if is_whole and folder not in classes["train"]]
    if empty:
        raise _wrong_layout(root, f"no image ({', '.join(EXTENSIONS)}) in {_some(empty)}", "remove that folder or add its images")
    if len(classes["train"]) < 2:
        raise _wrong_layout(root, f"one class, {min(classes['train'])!r}", "add others, or name that class's folder for unlabelled images")
    return tuple(sorted(classes["train"]))


def _wrong_layout(root: Path, problem: str, remedy: str = "arrange the files so, or correct the path") -> DataError:
    """Return the error for a folder in which something else was expected, with the first of its entries and of those below them."""
    found = []
    for entry in _visible(root)[:9]:
        below = [f"{entry.name}/{path.name}{'/' * path.is_dir()}" for path in _visible(entry)[:2]]
        found += below or [entry.name + "/" * entry.is_dir()]
    return DataError(f"{str(root)!r} has {problem}; expected {_EXPECTED}; found {_some(found, 8) or 'nothing'}; {remedy}")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_clutter(path.name)) if folder.is_dir() else []


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(map(repr, names[:limit])) + ", ..." * (len(names) > limit)
