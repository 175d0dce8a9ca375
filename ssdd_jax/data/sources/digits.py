"""Scikit-learn's 8x8 digits, which come inside its package."""

from pathlib import Path

import numpy as np

from ssdd_jax.data.source import Source, Split
from ssdd_jax.errors import DataError

CLASS_NAMES = tuple("0123456789")
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def open_digits(data_dir: Path) -> Source:
    """Open the digits: 1,797 grey images; a fixed fifth of every class is the test split, since none is published."""
    # Imported here: scikit-learn is an optional extra.
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data source 'digits' is in scikit-learn, which is not installed; run: pip install ssdd-jax[demo]") from error
    pixels, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(pixels) * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(targets).astype(np.int32)
    # RandomState, not default_rng: NumPy freezes its stream, so the split is the same under every NumPy version.
    random = np.random.RandomState(_SPLIT_SEED)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASS_NAMES)):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(_TEST_FRACTION * len(members))]] = True
    splits = {"train": Split(images[~is_test], labels[~is_test]), "test": Split(images[is_test], labels[is_test])}
    return Source("digits", splits, CLASS_NAMES, ())
