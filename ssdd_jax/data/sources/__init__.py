"""Where datasets come from: `open_source` finds the reader of a source by its name."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from ssdd_jax.data.source import Archive, Source
from ssdd_jax.errors import DataError, nearest

# Modules and functions by name, imported on use: a reader may need an extra.
_NAMED = {
    "digits": ("digits", "open_digits", ""),
    "mnist": ("idx", "open_mnist", "MNIST_ARCHIVES"),
    "fashion_mnist": ("idx", "open_fashion_mnist", "FASHION_MNIST_ARCHIVES"),
    "kmnist": ("idx", "open_kmnist", "KMNIST_ARCHIVES"),
    "cifar10": ("cifar", "open_cifar10", "CIFAR10_ARCHIVES"),
    "cifar100": ("cifar", "open_cifar100", "CIFAR100_ARCHIVES"),
    "svhn": ("svhn", "open_svhn", "ARCHIVES"),
    "stl10": ("stl10", "open_stl10", "ARCHIVES"),
    "tiny_imagenet": ("tiny_imagenet", "open_tiny_imagenet", "TINY_IMAGENET_ARCHIVES"),
    "imagenet64": ("imagenet64", "open_imagenet64", "ARCHIVES"),
    "cub200": ("cub", "open_cub200", "CUB200_ARCHIVES"),
    "dogs": ("dogs", "open_dogs", "DOGS_ARCHIVES"),
}
_KINDS = {
    "idx": ("idx", "open_idx"),
    "arrays": ("arrays", "open_arrays"),
    "folder": ("folder", "open_folder"),
    "tfds": ("tfds", "open_tfds"),
    "hf": ("hf", "open_hf"),
}
NAMED = tuple(_NAMED)
"""Datasets by name, read from their published files in the data folder."""
KINDS = tuple(_KINDS)
"""Kinds of sources that take an argument, written KIND:ARGUMENT."""


def default_data_dir() -> Path:
    """Return where published files are looked for if no folder is named: $SSDD_JAX_DATA, or data/ in the working directory."""
    return Path(os.environ.get("SSDD_JAX_DATA") or "data")


def data_folder(data_dir: str | Path) -> Path:
    """Return the absolute path of a data folder, "" being `default_data_dir()`; ~ is the user's home."""
    return Path(os.path.abspath(os.path.expanduser(str(data_dir) or default_data_dir())))


def open_source(source: str, data_dir: str | Path = "", *, download: bool = False) -> Source:
    """Open a dataset as it is published, without reading more of its pixels than it must.

    Args:
      source: a name among `NAMED`, or KIND:ARGUMENT with a kind among `KINDS`: idx:FOLDER, arrays:FILE, folder:ROOT, tfds:NAME,
        hf:NAME. Their readers' docstrings in `ssdd_jax.data.sources` describe the layouts.
      data_dir: folder of the published files; "" is `default_data_dir()`.
      download: let tfds and hf fetch what is not there yet; nothing else ever touches the network.

    Raises:
      DataError: an unknown source, missing or damaged files, or contents that are no dataset.
    """
    folder = data_folder(data_dir)
    name, colon, argument = str(source).partition(":")
    if name in _KINDS:
        return _function(_KINDS[name])(argument, folder, **({"download": True} if download and name in ("tfds", "hf") else {}))
    if name not in _NAMED:
        kinds = ", ".join(f"{kind}:..." for kind in KINDS)
        hint = nearest(name, (*NAMED, *KINDS), cutoff=0.4) or "; choose one of them"
        raise DataError(f"unknown data source {source!r}, expected one of {', '.join(NAMED)}, {kinds}{hint}")
    if colon:
        raise DataError(
            f"data source {source!r} has an argument, expected none: {name!r} is read from its published files; drop {argument!r}"
        )
    return _function(_NAMED[name][:2])(folder)


def archives(name: str) -> tuple[Archive, ...]:
    """Return the published files of a named dataset; () where it has none, or is not among `NAMED`."""
    module, _, constant = _NAMED.get(name, ("", "", ""))
    return getattr(importlib.import_module(f"{__name__}.{module}"), constant) if constant else ()


def _function(place: tuple[str, str]) -> Callable[..., Source]:
    module, function = place
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
