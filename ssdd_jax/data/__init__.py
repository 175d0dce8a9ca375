"""Image classification data: sources, splits, statistics and pixel scaling. NumPy only."""

from ssdd_jax.data.dataset import (
    Dataset,
    channel_statistics,
    denormalize,
    fingerprint,
    normalize,
    split_validation,
)
from ssdd_jax.data.sources import load_dataset

__all__ = [
    "Dataset",
    "channel_statistics",
    "denormalize",
    "fingerprint",
    "load_dataset",
    "normalize",
    "split_validation",
]
