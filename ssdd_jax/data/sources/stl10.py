"""STL-10, from the archive of its binary version."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Archive, PixelBlocks, Source, Split, damaged, locate
from ssdd_jax.data.sources._tar import opened_tar, read_tar, text_lines

ARCHIVES = (
    Archive("stl10_binary.tar.gz", "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),
)
_FOLDER = "stl10_binary/"
_IMAGES = {"train": f"{_FOLDER}train_X.bin", "test": f"{_FOLDER}test_X.bin", "unlabelled": f"{_FOLDER}unlabeled_X.bin"}
_LABELS = {"train": f"{_FOLDER}train_y.bin", "test": f"{_FOLDER}test_y.bin"}
_NAMES = f"{_FOLDER}class_names.txt"
_PIXELS = 3 * 96 * 96
_BLOCK_IMAGES = 512


def open_stl10(data_dir: Path) -> Source:
    """Open STL-10's stl10_binary.tar.gz in `data_dir`; its folds are not used.

    The archive is inflated once to verify it, and again for the images of every split; the unlabelled ones may be missing from it.
    """
    (file,) = locate(data_dir, ARCHIVES, "stl10")
    members, sizes = read_tar(file, ARCHIVES[0], (*_LABELS.values(), _NAMES))
    class_names = text_lines(members[_NAMES])
    splits = {}
    for split, member in _IMAGES.items():
        size = sizes.get(member, 0)
        if split not in _LABELS and member not in sizes:
            continue
        if not size or size % _PIXELS:
            raise damaged(file, f"{member} holds {size} bytes", f"one or more images of {_PIXELS} bytes", ARCHIVES[0])
        images = PixelBlocks((size // _PIXELS, 96, 96, 3), partial(_read_images, file, member, size // _PIXELS))
        labels = None
        if split in _LABELS:
            # The published labels are 1..10.
            labels = np.frombuffer(members[_LABELS[split]], np.uint8).astype(np.int32) - 1
            if len(labels) != len(images):
                raise damaged(file, f"{len(labels)} labels for {len(images)} {split} images", "one each", ARCHIVES[0])
            if labels.min() < 0 or labels.max() >= len(class_names):
                reason = f"{split} labels {labels.min() + 1}..{labels.max() + 1}"
                raise damaged(file, reason, f"1..{len(class_names)}, as it names {len(class_names)} classes", ARCHIVES[0])
        splits[split] = Split(images, labels)
    return Source("stl10", splits, class_names, (file,))


def _read_images(file: Path, member: str, count: int) -> Iterator[np.ndarray]:
    with opened_tar(file, ARCHIVES[0]) as (tar, _):
        for info in tar:
            stream = tar.extractfile(info) if info.name.removeprefix("./") == member else None
            if stream is not None:
                for start in range(0, count, _BLOCK_IMAGES):
                    content = stream.read(min(_BLOCK_IMAGES, count - start) * _PIXELS)
                    # A channel's values are stored column by column.
                    yield np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1))
                return
    raise damaged(file, f"there is no {member} in it any more", "the file as it was opened", ARCHIVES[0])
