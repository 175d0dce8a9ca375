"""Where datasets come from: `open_source` finds the reader of a source by its name."""

import importlib
import os
from pathlib import Path

from ssdd_jax.data.source import Archive, Source
from ssdd_jax.errors import DataError, nearest
from ssdd_jax.paths import local_path
from ssdd_jax.registry import Registry

_HERE = __name__
NAMED = Registry(
    "data source",
    {
        "digits": f"{_HERE}.digits:open_digits",
        "mnist": f"{_HERE}.idx:open_mnist",
        "fashion_mnist": f"{_HERE}.idx:open_fashion_mnist",
        "kmnist": f"{_HERE}.idx:open_kmnist",
        "cifar10": f"{_HERE}.cifar:open_cifar10",
        "cifar100": f"{_HERE}.cifar:open_cifar100",
        "svhn": f"{_HERE}.svhn:open_svhn",
        "stl10": f"{_HERE}.stl10:open_stl10",
        "tiny_imagenet": f"{_HERE}.tiny_imagenet:open_tiny_imagenet",
        "imagenet64": f"{_HERE}.imagenet64:open_imagenet64",
        "cub200": f"{_HERE}.cub:open_cub200",
        "dogs": f"{_HERE}.dogs:open_dogs",
    },
)
"""Datasets by name, read from their published files in the data folder: functions (data folder) -> `Source`."""

KINDS = Registry(
    "kind of data source",
    {
        "idx": f"{_HERE}.idx:open_idx",
        "arrays": f"{_HERE}.arrays:open_arrays",
        "folder": f"{_HERE}.folder:open_folder",
        "tfds": f"{_HERE}.tfds:open_tfds",
        "hf": f"{_HERE}.hf:open_hf",
    },
)
"""Kinds of sources that take an argument, written KIND:ARGUMENT: functions (argument, data folder) -> `Source`."""

_ARCHIVES = {
    "mnist": "idx:MNIST_ARCHIVES",
    "fashion_mnist": "idx:FASHION_MNIST_ARCHIVES",
    "kmnist": "idx:KMNIST_ARCHIVES",
    "cifar10": "cifar:CIFAR10_ARCHIVES",
    "cifar100": "cifar:CIFAR100_ARCHIVES",
    "svhn": "svhn:ARCHIVES",
    "stl10": "stl10:ARCHIVES",
    "tiny_imagenet": "tiny_imagenet:TINY_IMAGENET_ARCHIVES",
    "imagenet64": "imagenet64:ARCHIVES",
    "cub200": "cub:CUB200_ARCHIVES",
    "dogs": "dogs:DOGS_ARCHIVES",
}


def default_data_dir() -> Path:
    """Return the folder in which published files are looked for by default: $SSDD_JAX_DATA, or data/ in the working directory."""
    return Path(os.environ.get("SSDD_JAX_DATA") or "data")


def data_folder(data_dir: str | Path) -> Path:
    """Return the absolute path of a data folder; "" means `default_data_dir()`, ~ the user's home."""
    return Path(os.path.abspath(local_path(str(data_dir) or default_data_dir(), "the data folder")))


def open_source(source: str, data_dir: str | Path = "", *, download: bool = False) -> Source:
    """Open a dataset as published, reading as few of its pixels as possible.

    Args:
      source: a name in `NAMED`, or KIND:ARGUMENT with a kind in `KINDS`: idx:FOLDER, arrays:FILE, folder:ROOT, tfds:NAME,
        hf:NAME. Their readers' docstrings in `ssdd_jax.data.sources` describe the layouts.
      data_dir: folder of the published files; "" means `default_data_dir()`.
      download: let tfds and hf fetch what is not there yet; no other source touches the network.

    Raises:
      DataError: the source is unknown, files are missing or damaged, or the contents are not a dataset.
    """
    folder = data_folder(data_dir)
    name, colon, argument = str(source).partition(":")
    if name in KINDS:
        return KINDS[name](argument, folder, **({"download": True} if download and name in ("tfds", "hf") else {}))
    if name not in NAMED:
        kinds = ", ".join(f"{kind}:..." for kind in KINDS)
        hint = nearest(name, (*NAMED, *KINDS), cutoff=0.4) or "; choose one of them"
        raise DataError(f"unknown data source {source!r}, expected one of {', '.join(NAMED)}, {kinds}{hint}")
    if colon:
        raise DataError(
            f"data source {source!r} has an argument, expected none: {name!r} is read from its published files; drop {argument!r}"
        )
    return NAMED[name](folder)


def archives(name: str) -> tuple[Archive, ...]:
    """Return the published files of a named dataset; () where it has none, or is not among `NAMED`."""
    module, _, constant = _ARCHIVES.get(name, "").partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), constant) if constant else ()
