"""MNIST and datasets published in its IDX format."""

import gzip
import math
import os
import shlex
import zlib
from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Archive, Source, Split
from ssdd_jax.errors import DataError
from ssdd_jax.paths import local_path

# Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DIGIT_NAMES = tuple("0123456789")
FASHION_MNIST_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def _archives(address: str, checksums: tuple[str, str, str, str]) -> tuple[Archive, ...]:
    return tuple(Archive(f"{file}.gz", f"{address}/{file}.gz", md5) for file, md5 in zip(FILES, checksums, strict=True))


MNIST_ARCHIVES = _archives(
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST_ARCHIVES = _archives(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
KMNIST_ARCHIVES = _archives(
    "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
    (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
)


def open_mnist(data_dir: Path) -> Source:
    """Open MNIST's four files, gzipped or plain, in `data_dir`/mnist or `data_dir`."""
    return _open(data_dir, "mnist", DIGIT_NAMES, MNIST_ARCHIVES)


def open_fashion_mnist(data_dir: Path) -> Source:
    """Open Fashion-MNIST's four files in `data_dir`/fashion_mnist or `data_dir`, else where Debian's package puts them."""
    return _open(data_dir, "fashion_mnist", FASHION_MNIST_NAMES, FASHION_MNIST_ARCHIVES)


def open_kmnist(data_dir: Path) -> Source:
    """Open Kuzushiji-MNIST's four files in `data_dir`/kmnist or `data_dir`."""
    return _open(data_dir, "kmnist", KMNIST_NAMES, KMNIST_ARCHIVES)


def open_idx(argument: str, data_dir: Path) -> Source:
    """Open any folder of four files with MNIST's names; the classes are named by their numbers."""
    if not argument:
        raise DataError("data source 'idx' was given no folder, expected one with four MNIST-style files; write it as idx:FOLDER")
    folder = Path(os.path.abspath(local_path(argument, "data source idx:")))
    found, missing = _find(folder)
    if missing:
        raise DataError(
            f"folder {str(folder)!r} has no {', '.join(missing)}; expected the four MNIST-style files, gzipped or plain; correct the path"
        )
    return _read(folder.name or "idx", found, None)


def _open(data_dir: Path, name: str, class_names: tuple[str, ...], archives: tuple[Archive, ...]) -> Source:
    # Every MNIST-like dataset uses these file names, so a folder with the dataset's own name goes first.
    folders = [data_dir / name, data_dir, *([Path(FASHION_MNIST_FOLDER)] if name == "fashion_mnist" else [])]
    searched = [_find(folder) for folder in folders]
    whole = [found for found, missing in searched if not missing]
    if not whole:
        missing = min((missing for _, missing in searched), key=len)
        checksums = ", ".join(f"{archive.file} {archive.md5}" for archive in archives)
        package = "install Debian's package dataset-fashion-mnist, or " if name == "fashion_mnist" else ""
        raise DataError(
            f"{name}: no {', '.join(missing)} in {' or '.join(repr(str(folder)) for folder in folders)}; expected the four files published "
            f"at {archives[0].url.rpartition('/')[0]} (md5: {checksums}); {package}put them into {str(folders[0])!r}, "
            "name its parent with config.data.data_dir, "
            f"or run: python -m ssdd_jax.data download {name} --data_dir {shlex.quote(str(data_dir))}"
        )
    return _read(name, whole[0], class_names)


def _find(folder: Path) -> tuple[list[Path], list[str]]:
    """Return those of the four files that exist, and the names of the missing ones; a plain file goes before its gzip."""
    found = [next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None) for name in FILES]
    return [file for file in found if file is not None], [f"{n}[.gz]" for n, file in zip(FILES, found, strict=True) if file is None]


def _read(name: str, files: list[Path], class_names: tuple[str, ...] | None) -> Source:
    splits, largest = {}, 0
    for split, images_file, labels_file in (("train", *files[:2]), ("test", *files[2:])):
        images, labels = read_idx(images_file, num_axes=3), read_idx(labels_file, num_axes=1)
        if len(images) != len(labels):
            raise DataError(
                f"{str(images_file)!r} holds {len(images)} images and {labels_file.name!r} {len(labels)} labels, "
                "expected equally many; take both files from one release"
            )
        largest = max(largest, int(labels.max(initial=0)))
        splits[split] = Split(images[..., None], labels.astype(np.int32))
    return Source(name, splits, class_names or tuple(map(str, range(largest + 1))), tuple(files))


def read_idx(file: Path, num_axes: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes: big-endian magic 0x000008 and the number of axes, the axes' lengths, then the bytes.

    Raises:
      DataError: the file cannot be read, is not gzip despite its name, or has another type, number of axes or length.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {str(file)!r} ({type(error).__name__}), expected a complete {'gzip' if file.suffix == '.gz' else 'IDX'} file; "
            "check its permissions or download it again"
        ) from error
    header_size = 4 + 4 * num_axes
    expected_magic = bytes([0, 0, 8, num_axes])
    if content[:4] != expected_magic:
        raise DataError(
            f"{str(file)!r} begins with bytes '{content[:4].hex()}', expected the IDX magic number '{expected_magic.hex()}'; "
            f"check that it is {'an image' if num_axes == 3 else 'a label'} file"
        )
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header_size, 4))
    # Python integers: a damaged header's product can exceed 64 bits.
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        raise DataError(
            f"{str(file)!r} holds {len(content)} bytes, expected {expected_size} for its header's shape {shape}; "
            "the file is truncated or damaged: download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)
