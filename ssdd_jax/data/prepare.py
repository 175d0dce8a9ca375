"""Preparing a source once: decoded, resized and stored as uint8 arrays that are memory-mapped from then on."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.data import remarks
from ssdd_jax.data.dataset import Dataset, StoredSplit, array_digest
from ssdd_jax.data.decode import check_ground
from ssdd_jax.data.source import EncodedImages, Source
from ssdd_jax.data.splits import Options, write_splits
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import file_digest, json_digest, locked
from ssdd_jax.io.manifest import MANIFEST, read_manifest
from ssdd_jax.paths import default_cache, local_path
from ssdd_jax.progress import Display

FORMAT = 2
# File systems allow 255 bytes, some that encrypt 143, and the folder has a longer name while it is being written.
NAME_BYTES = 100
# A folder younger than this may not be locked yet.
YOUNG_S = 60.0
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{12}\.[^.]+\.tmp")


def prepare(source: Source, options: Options, cache: Path | None = None, display: Display | None = None, *, notes: bool = True) -> Path:
    """Store a source's images and labels, unless this has been done and nothing has changed since, and return their folder.

    The folder holds, for every split, SPLIT_images.npy (uint8 n H W C), SPLIT_labels.npy (int32 n, if there are labels),
    SPLIT_groups.npy (int64 n, the first row with the same image, if any two are equal) and, for image files, SPLIT_files.sha256
    with a line 'digest  name' for each file read; manifest.json says what they were made from. It appears under its name only
    when it is complete.

    Args:
      source: what to read.
      options: how to store it.
      cache: folder of all prepared datasets; None means `default_cache()`.
      display: for the progress bar, and for notes.
      notes: whether to print `ssdd_jax.data.remarks.notes` when it has been stored.

    Raises:
      DataError: the source cannot be read, its labels or shapes do not fit together, images are bad, splits overlap, or there is no space.
      InputError: `options.ground` is not a colour.
    """
    cache, display = local_path(cache or default_cache(), "the cache folder"), display or Display()
    check_labels(source)
    check_ground(options.ground)
    if source.overlap and options.overlap != "allow":
        raise DataError(f"{source.overlap}, or set config.data.overlap=allow")
    try:
        stamp = _stamp(source)
    except OSError as error:
        raise DataError(
            f"{source.name}: cannot read {str(error.filename)!r} ({error.strerror}), expected the files that were found a moment ago; "
            "try again"
        ) from error
    identity = json_digest([FORMAT, source.name, [str(file) for file in source.files], str(source.root), asdict(options)])[:12]
    # Cut in bytes, not in letters; the digest tells apart what begins alike.
    folder_name = re.sub(r"[^\w.-]", "_", source.name).encode()[:NAME_BYTES].decode(errors="ignore")
    folder = cache / f"{folder_name}-{identity}"
    if (read_prepared_manifest(folder) or {}).get("stamp") == stamp:
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _store(source, options, folder, stamp, display)
    except (BrokenProcessPool, MemoryError) as error:
        raise DataError(
            f"cannot prepare {source.name}: a process that decodes images ended unexpectedly; it may have run out of memory, or the "
            'calling program lacks `if __name__ == "__main__":` around its main part; try again'
        ) from error
    except OSError as error:
        remedy = "free space or" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a folder that can be written:"
        raise DataError(
            f"cannot prepare {source.name} in {str(cache)!r}: {error.strerror or error}; {remedy} set SSDD_JAX_CACHE"
        ) from error
    for line in remarks.notes(source, read_prepared_manifest(folder) or {}) if notes else ():
        display.print(line)
    return folder


def _store(source: Source, options: Options, folder: Path, stamp: str, display: Display) -> None:
    """Prepare into a folder next to `folder`, locked so that no other process takes it for a left-over, and move it into place."""
    _remove_left_over(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with locked(temporary):
            temporary.chmod(0o755)
            manifest = {"format": FORMAT, "name": source.name, "options": asdict(options), "class_names": list(source.class_names)}
            manifest["splits"] = write_splits(source, options, temporary, display)
            manifest["files"] = [{"name": str(file), "bytes": file.stat().st_size, "sha256": file_digest(file)} for file in source.files]
            manifest["root"] = str(source.root) if source.root else None
            manifest["stamp"] = stamp
            # Without names: equal pixels and labels are the same dataset, whatever they were read from. Groups follow from the pixels.
            digests = lambda split: {part: digest for part, digest in split["sha256"].items() if part != "groups"}
            content = {name: [split["shape"], digests(split)] for name, split in manifest["splits"].items()}
            manifest["fingerprint"] = json_digest([content, len(source.class_names)])
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            _put_in_place(temporary, folder, stamp)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_prepared_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a prepared dataset, or None if it cannot be read, so that the dataset is prepared again."""
    try:
        manifest = read_manifest(folder) or {}
    except (OSError, DataError):
        return None
    return manifest if manifest.get("format") == FORMAT and "splits" in manifest else None


def open_prepared(folder: Path) -> Dataset:
    """Open a prepared dataset; its images are memory-mapped.

    Raises:
      DataError: it is not complete.
    """
    manifest = read_prepared_manifest(folder)
    if manifest is None:
        raise DataError(f"no prepared dataset in {str(folder)!r}, expected {MANIFEST} there; prepare it again")
    splits = {}
    for name, about in manifest["splits"].items():
        try:
            images = np.load(folder / f"{name}_images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False) if about["labelled"] else None
            groups = np.load(folder / f"{name}_groups.npy", mmap_mode="r", allow_pickle=False) if about["repeated"] else None
        except (OSError, ValueError) as error:
            raise DataError(
                f"the prepared {name} split in {str(folder)!r} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); "
                "delete the folder and it is prepared again"
            ) from error
        of_rows = {name: array.shape for name, array in (("labels", labels), ("groups", groups)) if array is not None}
        if list(images.shape) != about["shape"] or any(shape != images.shape[:1] for shape in of_rows.values()):
            found = " and ".join([str(images.shape), *(f"{shape} {what}" for what, shape in of_rows.items())])
            raise DataError(f"the prepared {name} split in {str(folder)!r} has shape {found}, expected {about['shape']}; delete the folder")
        splits[name] = StoredSplit(images, labels, groups)
    return Dataset(manifest["name"], splits, tuple(manifest["class_names"]), manifest["fingerprint"], folder)


def damaged_arrays(folder: Path) -> list[str]:
    """Return the names of the arrays whose bytes have changed since they were prepared; reads all of them."""
    manifest = read_prepared_manifest(folder) or {"splits": {}}
    kept = {f"{split}_{part}": digest for split, about in manifest["splits"].items() for part, digest in about["sha256"].items()}
    load = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return [name for name, digest in kept.items() if array_digest(load(name)) != digest]


def check_labels(source: Source) -> None:
    """Refuse labels that do not fit the class names, or that are all of one class.

    Raises:
      DataError: the labels are refused, or the source has no training images.
    """
    if not {"train", "unlabelled"} & source.splits.keys():
        raise DataError(
            f"{source.name} has no train split (it has {', '.join(source.splits) or 'nothing'}), expected one; check its layout"
        )
    for name, split in source.splits.items():
        if len(split.images) == 0:
            raise DataError(f"{source.name}: the {name} split is empty, expected at least one image; check its layout")
        if split.labels is None:
            continue
        where = f"{source.name}: {name} labels"
        if len(split.labels) != len(split.images):
            raise DataError(f"{where}: {len(split.labels)} for {len(split.images)} images, expected one each; check the pairing")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(source.class_names):
            raise DataError(
                f"{where} span {low}..{high}, expected 0..{len(source.class_names) - 1} for {len(source.class_names)} class names; "
                "renumber the labels or name every class"
            )
        if name == "train" and low == high:
            raise DataError(
                f"{where} are all of one class, {source.class_names[low]!r}, expected two or more; "
                "give every class its own label or folder, or leave the labels out"
            )


def _stamp(source: Source) -> str:
    """Return a digest that changes when the source's files do: of names, sizes and times, or of the pixels where there are no files."""
    files = [[str(file), file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ctime_ns] for file in source.files]
    digest = hashlib.sha256(json.dumps([files, list(source.class_names)]).encode())
    for name, split in sorted(source.splits.items()):
        labels = b"" if split.labels is None else np.ascontiguousarray(split.labels, "<i4").tobytes()
        digest.update(f"{name} {len(split.images)} ".encode() + hashlib.sha256(labels).digest())
        if isinstance(split.images, np.ndarray) and not source.files:
            digest.update(np.ascontiguousarray(split.images).data)
        if isinstance(split.images, EncodedImages) and source.root is not None:
            for image in split.images.read():
                if isinstance(image.content, str):
                    about = os.stat(image.content)
                    digest.update(
                        f"{image.index} {image.name} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode(
                            errors="surrogateescape"
                        )
                    )
    return digest.hexdigest()


def _remove_left_over(cache: Path) -> None:
    """Remove folders that dead processes left unfinished: those that nobody has locked and that are not brand new."""
    for folder in cache.glob(".*.tmp"):
        with suppress(OSError, InputError):
            if _TEMPORARY.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > YOUNG_S:
                with locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path, stamp: str) -> None:
    while (read_prepared_manifest(folder) or {}).get("stamp") != stamp:  # else another process has prepared the same in the meantime
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Processes that have the old arrays open keep them.
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
            with suppress(FileNotFoundError):
                folder.rename(old / folder.name)
            shutil.rmtree(old, ignore_errors=True)
