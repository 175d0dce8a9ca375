"""Arrays that are needed for a while and may be larger than memory."""

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.errors import StorageError
from ssdd_jax.io.files import reserve


class Scratch:
    """Makes arrays: in memory, or memory-mapped to a file without a name where one takes more than a limit.

    Such a file ends with its array, however the process ends.

    Args:
        folder: of the files; made when the first is needed.
        limit: bytes that one array may take in memory.
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = folder, limit

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Return an array whose values are not defined.

        Raises:
            StorageError: the file does not fit on the disk.
        """
        size = prod(shape) * np.dtype(dtype).itemsize
        if size <= self.limit:
            return np.empty(shape, dtype)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            reserve(self.folder, size)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                return np.memmap(file, dtype, "w+", shape=shape)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"cannot hold {size / 1e9:.2f} GB of features in {self.folder}: {reason}; free space and run again"
            ) from error
