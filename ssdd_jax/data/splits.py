"""Decoding the images of a source, fitting them to one shape and writing them as uint8 arrays, in several processes where that pays off."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssdd_jax.data import workers
from ssdd_jax.data.dataset import array_digest, convert_channels, count_pixels, statistics_of
from ssdd_jax.data.decode import BadImage, decode_image, fit_image
from ssdd_jax.data.source import EncodedImage, EncodedImages, PixelBlocks, Source, Split
from ssdd_jax.errors import DataError
from ssdd_jax.io.files import allocate_npy
from ssdd_jax.progress import Display

# Starting the processes takes as long as decoding this many small images.
PARALLEL_FROM = 2048
CHUNK_IMAGES = 256
CHUNK_BYTES = 2**23
BAD_LISTED = 5
# Published datasets have a few images in both splits.
MAX_SHARED = 0.01


@dataclass(frozen=True)
class Options:
    """How images are stored.

    Attributes:
      size: side in pixels; 0 keeps the images' own size, which must then be the same for all.
      fit: how they are brought to that size, see `ssdd_jax.data.decode.fit_image`: crop, resize or pad.
      channels: 1 or 3 converts to that many; 0 goes by the source, or by the first image.
      on_bad_image: stop, or skip and record the images that cannot be used.
      ground: what transparent images are laid on: white, black or #RRGGBB; arrays are left as they are.
      overlap: refuse, or allow, a test split of which more than 1 % are training images too.
    """

    size: int = 0
    fit: Literal["crop", "resize", "pad"] = "crop"
    channels: int = 0
    on_bad_image: Literal["stop", "skip"] = "stop"
    ground: str = "white"
    overlap: Literal["refuse", "allow"] = "refuse"


@dataclass
class _Chunk:
    """What became of some images."""

    counts: np.ndarray
    digests: list[tuple[int, str, str]] = field(default_factory=list)
    rows: list[tuple[int, bytes]] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str, str]] = field(default_factory=list)


def write_splits(source: Source, options: Options, folder: Path, display: Display) -> dict[str, Any]:
    """Write all splits, and return what the manifest says about each; the first one determines the shape of all.

    Raises:
      DataError: shapes do not fit together, images are bad, or splits overlap.
    """
    shape, splits, rows = None, {}, {}
    costly = [len(split.images) for split in source.splits.values() if isinstance(split.images, EncodedImages) or options.size]
    with workers.pool(max(costly, default=0) >= PARALLEL_FROM, display) as submit:
        for name in sorted(source.splits, key=("train", "unlabelled", "test").index):
            split = source.splits[name]
            if shape is None or not isinstance(split.images, EncodedImages):
                found = _first_shape(f"{source.name} {name}", split.images, options)
                shape = shape or found
                if found != shape and found != (*shape[:2], 1):
                    raise DataError(
                        f"{source.name}: {name} images are {_shape_text(found)}, those of the first split {_shape_text(shape)}, expected "
                        "one shape; set config.data.size or config.data.channels to convert them"
                    )
            splits[name], rows[name] = _write_split(f"{source.name} {name}", name, split, options, shape, folder, submit, display)
    for first, second in (("train", "test"), ("unlabelled", "test")):
        if first in rows and second in rows:
            shared = len(np.flatnonzero(np.isin(rows[second], rows[first])))
            splits[second][f"also_in_{first}"] = shared
            if shared > MAX_SHARED * len(rows[second]) and options.overlap != "allow":
                raise DataError(
                    f"{source.name}: the splits overlap, {shared} of {len(rows[second])} {second} images are {first} images too, expected "
                    f"at most {MAX_SHARED:.0%}; remove them from one of the splits, or set config.data.overlap=allow"
                )
    return splits


def _write_split(
    where: str,
    name: str,
    split: Split,
    options: Options,
    shape: tuple[int, int, int],
    folder: Path,
    submit: Callable[..., Future],
    display: Display,
) -> tuple[dict[str, Any], np.ndarray]:
    """Write a split's files; return what the manifest says about it, and a short digest of every image."""
    count, file = len(split.images), folder / f"{name}_images.npy"
    if isinstance(split.images, EncodedImages):
        options = replace(options, channels=options.channels or split.images.channels)
    largest = prod(shape) if isinstance(split.images, EncodedImages) else max(prod(shape), prod(split.images.shape[1:]))
    most = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // largest))
    allocate_npy(file, (count, *shape), np.uint8)
    counts, converted = np.zeros((shape[-1], 256), np.int64), Counter()
    bad: list[tuple[int, str, str]] = []
    digests: dict[int, str] = {}
    rows = np.zeros(count, "S16")
    waiting: deque[tuple[Future, int]] = deque()
    done = 0
    with display.task(f"prepare {where}", count) as task:

        def collect() -> None:
            nonlocal done
            future, size = waiting.popleft()
            chunk: _Chunk = future.result()
            counts[...] += chunk.counts
            converted.update(chunk.converted)
            digests.update({index: f"{digest}  {title}" for index, title, digest in chunk.digests})
            for index, row in chunk.rows:
                rows[index] = row
            bad.extend(chunk.bad)
            done += size
            task.advance(done)
            if options.on_bad_image == "stop" and len(bad) >= BAD_LISTED:
                raise _bad_images(where, bad, done, count)

        for chunk in _chunks(split.images, most):
            size = len(chunk) if isinstance(chunk, list) else len(chunk[1])
            waiting.append((submit(_process, file, chunk, options, shape), size))
            # Enough are under way to keep every process busy, and no more are held in memory.
            while len(waiting) > 2 * workers.num_workers():
                collect()
        while waiting:
            collect()
    if bad and options.on_bad_image == "stop":
        raise _bad_images(where, bad, done, count)
    if done != count:
        raise DataError(f"{where}: {done} images were read, expected {count}; the source has changed since or is damaged: check it")
    labels, skipped = split.labels, sorted(bad)
    if skipped:
        keep = np.delete(np.arange(count), [index for index, _, _ in skipped])
        if not len(keep):
            raise _bad_images(where, bad, done, count)
        _keep_rows(file, keep)
        labels, rows, count = None if labels is None else labels[keep], rows[keep], len(keep)
        if name == "train" and labels is not None and labels.min() == labels.max():
            raise DataError(f"{where}: without the {len(bad)} images that cannot be used, one class is left, expected two or more")
    images = np.load(file, mmap_mode="r")
    mean, std = statistics_of(counts)
    _, firsts, which, copies = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    about = {
        "shape": [count, *shape],
        "labelled": labels is not None,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "converted": dict(converted),
        "skipped": [{"name": title, "reason": reason} for _, title, reason in skipped],
        "repeated": count - len(copies),
        "most_copies": int(copies.max()),
        "sha256": {"images": array_digest(images)},
    }
    if labels is not None:
        labels = labels.astype(np.int32)
        np.save(folder / f"{name}_labels.npy", labels)
        about["sha256"]["labels"] = array_digest(labels)
    if about["repeated"]:
        groups = firsts[which].astype(np.int64)
        np.save(folder / f"{name}_groups.npy", groups)
        about["sha256"]["groups"] = array_digest(groups)
    if digests:
        (folder / f"{name}_files.sha256").write_text(
            "".join(f"{digests[i]}\n" for i in sorted(digests)), encoding="utf-8", errors="surrogateescape"
        )
    return about, rows


def _chunks(images: np.ndarray | PixelBlocks | EncodedImages, most: int) -> Iterator[list[EncodedImage] | tuple[int, np.ndarray]]:
    """Yield the images in pieces of `most`: lists of image files, or (row of the first, block of pixels)."""
    if isinstance(images, EncodedImages):
        chunk = []
        for image in images.read():
            chunk.append(image)
            if len(chunk) == most:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    start = 0
    for block in [images] if isinstance(images, np.ndarray) else images.read():
        for first in range(0, len(block), most):
            piece = np.asarray(block[first : first + most])
            yield start, piece
            start += len(piece)


def _process(file: Path, chunk: list[EncodedImage] | tuple[int, np.ndarray], options: Options, shape: tuple[int, int, int]) -> _Chunk:
    """Decode and fit some images and write them to their rows of the file; runs in any process."""
    result = _Chunk(np.zeros((shape[-1], 256), np.int64))
    pixels = np.empty((len(chunk if isinstance(chunk, list) else chunk[1]), *shape), np.uint8)
    for row, (index, image) in enumerate(_fitted(chunk, options, shape, result)):
        pixels[row] = image
        result.rows.append((index, hashlib.sha256(pixels[row]).digest()[:16]))
    if result.rows:
        written = pixels[: len(result.rows)]
        np.load(file, mmap_mode="r+", allow_pickle=False)[[index for index, _ in result.rows]] = written
        result.counts += count_pixels(written)
    return result


def _fitted(
    chunk: list[EncodedImage] | tuple[int, np.ndarray], options: Options, shape: tuple[int, int, int], result: _Chunk
) -> Iterator[tuple[int, np.ndarray]]:
    if not isinstance(chunk, list):
        first, block = chunk
        block = convert_channels(block, shape[-1])
        for index, image in enumerate(block, first):
            yield index, fit_image(image, options.size, options.fit) if options.size else image
        return
    for encoded in chunk:
        index, name, _ = encoded
        try:
            data = encoded.read_bytes()
            result.digests.append((index, name, hashlib.sha256(data).hexdigest()))
            image, note = decode_image(data, options.channels, options.ground)
            if image.shape[-1] != shape[-1]:
                if image.shape[-1] != 1:
                    raise BadImage("in colour, the first image is grey; config.data.channels=3 makes all of them colour")
                image, note = np.repeat(image, 3, -1), note or "grey to RGB"
            image = fit_image(image, options.size, options.fit) if options.size else image
            if image.shape != shape:
                raise BadImage(
                    f"{image.shape[0]}x{image.shape[1]} pixels, the first image has {shape[0]}x{shape[1]}; config.data.size resizes all"
                )
            result.converted.update([note] if note else [])
            yield index, image
        except (BadImage, OSError) as error:
            result.bad.append((index, name, str(error) if isinstance(error, BadImage) else error.strerror or type(error).__name__))


def _first_shape(where: str, images: np.ndarray | PixelBlocks | EncodedImages, options: Options) -> tuple[int, int, int]:
    """Return the (H, W, C) of all images to be stored, from the first one that can be used."""
    if not isinstance(images, EncodedImages):
        h, w, c = images.shape[1:]
        _check_channels(where, c, options.channels)
        try:
            if options.size:
                fit_image(np.zeros((h, w, 1), np.uint8), options.size, options.fit)
        except BadImage as error:
            raise DataError(f"{where}: {error}; choose another config.data.size or config.data.fit") from error
        return (options.size or h, options.size or w, options.channels or c)
    bad = []
    for encoded in images.read():
        index, name, _ = encoded
        try:
            image, _ = decode_image(encoded.read_bytes(), options.channels or images.channels, options.ground)
            h, w, c = (fit_image(image, options.size, options.fit) if options.size else image).shape
            return h, w, c
        except (BadImage, OSError) as error:
            bad.append((index, name, str(error)))
            if options.on_bad_image == "stop" and len(bad) == BAD_LISTED:
                break
    raise _bad_images(where, bad, len(bad), len(images))


def _check_channels(where: str, found: int, wanted: int) -> None:
    if wanted and found != wanted and {found, wanted} != {1, 3}:
        raise DataError(f"{where} has {found} channels and {wanted} are asked for, expected 1 or 3 for both; use channels 0")


def _bad_images(where: str, bad: list[tuple[int, str, str]], seen: int, count: int) -> DataError:
    listed = ", ".join(f"{name!r} ({reason})" for _, name, reason in bad[:BAD_LISTED])
    more = f" and {len(bad) - BAD_LISTED} more" if len(bad) > BAD_LISTED else ""
    return DataError(
        f"{where}: {len(bad)} of the first {seen} images (of {count}) cannot be used: {listed}{more}; "
        "repair or remove them, or set config.data.on_bad_image=skip"
    )


def _keep_rows(file: Path, keep: np.ndarray) -> None:
    whole, shorter = np.load(file, mmap_mode="r"), file.with_suffix(".kept")
    allocate_npy(shorter, (len(keep), *whole.shape[1:]), np.uint8)
    kept = np.load(shorter, mmap_mode="r+")
    for start in range(0, len(keep), CHUNK_IMAGES):
        kept[start : start + CHUNK_IMAGES] = whole[keep[start : start + CHUNK_IMAGES]]
    shorter.replace(file)


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
