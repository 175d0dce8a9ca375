"""CIFAR-10 and CIFAR-100, from the archives of their binary versions."""

from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Archive, Source, Split, damaged, locate
from ssdd_jax.data.sources._tar import read_tar, text_lines

CIFAR10_ARCHIVES = (
    Archive("cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
)
CIFAR100_ARCHIVES = (
    Archive("cifar-100-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
)
_PIXELS = 3 * 32 * 32


def open_cifar10(data_dir: Path) -> Source:
    """Open CIFAR-10's cifar-10-binary.tar.gz in `data_dir`."""
    train = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
    test, names = "cifar-10-batches-bin/test_batch.bin", "cifar-10-batches-bin/batches.meta.txt"
    return _open(data_dir, "cifar10", CIFAR10_ARCHIVES[0], {"train": train, "test": (test,)}, names, label_bytes=1)


def open_cifar100(data_dir: Path) -> Source:
    """Open CIFAR-100's cifar-100-binary.tar.gz in `data_dir`; the labels are the 100 fine ones."""
    parts = {split: (f"cifar-100-binary/{split}.bin",) for split in ("train", "test")}
    return _open(data_dir, "cifar100", CIFAR100_ARCHIVES[0], parts, "cifar-100-binary/fine_label_names.txt", label_bytes=2)


def _open(data_dir: Path, name: str, archive: Archive, parts: dict[str, tuple[str, ...]], names_member: str, label_bytes: int) -> Source:
    (file,) = locate(data_dir, [archive], name)
    members, _ = read_tar(file, archive, (*[member for part in parts.values() for member in part], names_member))
    class_names = text_lines(members[names_member])
    splits = {}
    for split, part in parts.items():
        records = []
        for member in part:
            content, size = members.pop(member), label_bytes + _PIXELS
            if not content or len(content) % size:
                raise damaged(file, f"{member} holds {len(content)} bytes", f"one or more records of {size} bytes", archive)
            records.append(np.frombuffer(content, np.uint8).reshape(-1, size))
        # CIFAR-100's records begin with the coarse label.
        labels = np.concatenate([record[:, label_bytes - 1] for record in records]).astype(np.int32)
        if labels.max() >= len(class_names):
            expected = f"0..{len(class_names) - 1}, as it names {len(class_names)} classes"
            raise damaged(file, f"a {split} label is {labels.max()}", expected, archive)
        images = np.empty((len(labels), 32, 32, 3), np.uint8)
        np.concatenate([record[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for record in records], out=images)
        splits[split] = Split(images, labels)
    return Source(name, splits, class_names, (file,))
