"""Image classification data: sources, preparation, splits and statistics. NumPy and Pillow only."""

from pathlib import Path

from ssdd_jax.data.dataset import Concatenated, Dataset, Images, OnDisk, channel_statistics, select_rows, take_rows, validation_rows
from ssdd_jax.data.prepare import open_prepared, prepare, read_prepared_manifest
from ssdd_jax.data.remarks import warnings
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
    """Open a source, prepare it unless it is prepared already, print warnings about what is in it, and return it, memory-mapped.

    Args:
      source: see `open_source`.
      data_dir: see `open_source`.
      options: how images are stored.
      cache: see `prepare`.
      display: see `prepare`; warnings are printed there as well.

    Raises:
      DataError: see both.
    """
    display = display or Display()
    folder = prepare(open_source(source, data_dir), options or Options(), cache, display)
    dataset, manifest = open_prepared(folder), read_prepared_manifest(folder)
    for line in warnings(dataset.name, dataset, manifest) if manifest else ():
        display.print(f"warning: {line}")
    return dataset
