"""SVHN's cropped digits, from its MATLAB files."""

import warnings
from pathlib import Path

import numpy as np
import scipy.io

from ssdd_jax.data.source import Archive, Source, Split, damaged, locate

ARCHIVES = (
    Archive("train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    Archive("test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
)


def open_svhn(data_dir: Path) -> Source:
    """Open SVHN's train_32x32.mat and test_32x32.mat in `data_dir`; the extra images are not used."""
    files = locate(data_dir, ARCHIVES, "svhn")
    splits = {split: _read(file, archive) for split, file, archive in zip(("train", "test"), files, ARCHIVES, strict=True)}
    return Source("svhn", splits, tuple("0123456789"), tuple(files))


def _read(file: Path, archive: Archive) -> Split:
    try:
        with warnings.catch_warnings():
            # SciPy warns about what it cannot read and returns something else; that is checked below.
            warnings.simplefilter("ignore")
            content = scipy.io.loadmat(file, variable_names=("X", "y"))
    except Exception as error:
        # SciPy's reader raises nearly anything on damaged files.
        raise damaged(file, error, "a complete MATLAB file, older than version 7.3", archive) from error
    missing = [key for key in ("X", "y") if key not in content]
    if missing:
        raise damaged(file, f"there is no {' and no '.join(missing)} in it", "X and y", archive)
    pixels, digits = np.asarray(content["X"]), np.asarray(content["y"])
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or not pixels.size:
        raise damaged(file, f"X is {pixels.dtype} {pixels.shape}", "uint8 (32, 32, 3, n)", archive)
    if digits.dtype.kind not in "iu" or digits.shape != (pixels.shape[3], 1):
        raise damaged(file, f"y is {digits.dtype} {digits.shape}", f"integers ({pixels.shape[3]}, 1), one for each image in X", archive)
    if digits.min() < 1 or digits.max() > 10:
        raise damaged(file, f"y spans {digits.min()}..{digits.max()}", "1..10, where 10 is the digit 0", archive)
    return Split(np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), (digits.ravel() % 10).astype(np.int32))
