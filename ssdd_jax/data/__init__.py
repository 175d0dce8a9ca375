"""Image classification data: sources, splits and statistics. NumPy only."""

from ssdd_jax.data.dataset import (
    Dataset,
    channel_statistics,
    fingerprint,
    split_validation,
)
from ssdd_jax.data.sources import load_dataset

__all__ = [
    "Dataset",
    "channel_statistics",
    "fingerprint",
    "load_dataset",
    "split_validation",
]
