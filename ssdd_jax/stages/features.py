"""Representations that were made elsewhere, in the place of a teacher's network: `config.teacher.features`.

The file is an .npz, a folder of NAME.npy files (which stay on disk), or one .npy with the array `identity` alone. Its arrays are floats
"n d", with one row per image of a split, in the dataset's order, held-out images included:

    identity                 the split that is distilled, `config.data.split`
    rot90, hflip, ...        the same images under views of `ssdd_jax.VIEWS`, as far as methods or `config.outer.real_views` ask for them
    test (or train)          another split, if students are evaluated on it

Other arrays are ignored. What is asked for and missing, or of another length, is refused before anything runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ssdd_jax.core.views import VIEWS
from ssdd_jax.data import Images, take_rows
from ssdd_jax.data.dataset import array_digest
from ssdd_jax.data.source import SPLITS
from ssdd_jax.data.sources._npy import Npz, open_npy
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import json_digest
from ssdd_jax.paths import local_path
from ssdd_jax.stages.dataset import Rows

IDENTITY = "identity"


@dataclass(frozen=True, eq=False)
class Features:
    """Representations by name, see this file's beginning.

    Attributes:
        arrays: floats "n d", in memory or memory-mapped.
        split: the split that `identity` and the other views are of.
        where: what they are called in messages.

    Raises:
        DataError: one is not of this form, or `identity` is missing.
    """

    arrays: Mapping[str, np.ndarray]
    split: str = "train"
    where: str = "the teacher"

    def __post_init__(self):
        if IDENTITY not in self.arrays:
            raise DataError(f"{self.where} has {', '.join(self.arrays) or 'no array'}, expected {IDENTITY}, of the {self.split} images")
        for name, array in self.arrays.items():
            if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1:] != (self.width,) or 0 in array.shape:
                raise DataError(
                    f"{name} of {self.where} is {array.dtype} {array.shape}, expected floats (n, {self.width if self.width else 'd'}) with "
                    "one row per image; save x.reshape(len(x), -1).astype('float32')"
                )

    @property
    def width(self) -> int:
        """Return the width of a representation."""
        shape = self.arrays[IDENTITY].shape
        return shape[1] if len(shape) == 2 else 0

    @cached_property
    def fingerprint(self) -> str:
        """Return the digest of all arrays."""
        return json_digest({name: [list(array.shape), array.dtype.str, array_digest(array)] for name, array in self.arrays.items()})

    def take(self, rows: Rows, view: str = IDENTITY, asked_by: str = "") -> Images:
        """Return the representations of some images under a view.

        Raises:
            InputError: there are none, or not one per image of the split; the message names what asked for them.
        """
        name = view if rows.split == self.split else rows.split
        asking = f"{asked_by} asks for {name}, " if asked_by else f"no {name}: "
        what = f"the {rows.count} {rows.split} images in the dataset's order" + (f", under {view}" if view != IDENTITY else "")
        if name not in self.arrays:
            raise InputError(f"{asking}{self.where} has {', '.join(self.arrays)}; add {name}, the representations of {what}")
        if len(self.arrays[name]) != rows.count:
            raise InputError(f"{name} of {self.where} has {len(self.arrays[name])} rows, expected {rows.count}, one for each of {what}")
        return take_rows(self.arrays[name], rows.rows, in_memory=False)


def read_features(file: str, split: str) -> Features:
    """Return the representations in a file, as `config.teacher.features` names it; `split` is the one that is distilled.

    Raises:
        InputError: there is no such file.
        DataError: it cannot be read.
    """
    where = "config.teacher.features"
    path = local_path(file, where)
    known = lambda names: [name for name in names if name in VIEWS or name in SPLITS]
    if path.is_dir():
        arrays = {name: open_npy(path / f"{name}.npy").load() for name in known(sorted(found.stem for found in path.glob("*.npy")))}
    elif not path.is_file():
        raise InputError(f"{where}: no file {str(path)!r}, expected an .npz or .npy of features, or a folder of .npy; correct the path")
    elif path.suffix == ".npy":
        arrays = {IDENTITY: open_npy(path).load()}
    else:
        npz = Npz(path)
        arrays = {name: npz.open(name).load() for name in known(npz.keys)}
    return Features(arrays, split, f"{where} ({Path(file).name})")
