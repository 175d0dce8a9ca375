"""Image classification data: sources, preparation, splits and statistics. NumPy and Pillow only."""

from pathlib import Path

from ssdd_jax.data.dataset import Concatenated, Dataset, Images, OnDisk, channel_statistics, select_rows, take_rows, validation_rows
from ssdd_jax.data.prepare import open_prepared, prepare
from ssdd_jax.data.source import Source, Split
from ssdd_jax.data.sources import open_source
from ssdd_jax.data.splits import Options
from ssdd_jax.progress import Display

__all__ = [
    "Concatenated",
    "Dataset",
    "Images",
    "OnDisk",
    "Options",
    "Source",
    "Split",
    "channel_statistics",
    "load_dataset",
    "open_prepared",
    "open_source",
    "prepare",
    "select_rows",
    "take_rows",
    "validation_rows",
]


def load_dataset(
    source: str, data_dir: str | Path = "", options: Options | None = None, cache: Path | None = None, display: Display | None = None
) -> Dataset:
    """Open a source, prepare it unless it is prepared already, and return it; the images are memory-mapped.

    Args:
      source: see `open_source`.
      data_dir: see `open_source`.
      options: how images are stored.
      cache: see `prepare`.
      display: see `prepare`.

    Raises:
      DataError: see both.
    """
    return open_prepared(prepare(open_source(source, data_dir), options or Options(), cache, display))
