"""Passing many images through a network, one batch at a time."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.data import Images
from ssdd_jax.errors import StorageError
from ssdd_jax.io.files import allocate_npy, write_json
from ssdd_jax.progress import Display
from ssdd_jax.runtime.health import NumericalError

ENCODE_BATCH = 512
# Number of batches between two records of how far a file has got.
RECORD_EVERY = 64
# Bytes that are read at a time.
DIGEST_BYTES = 2**24


def encode_batch_size(rows: Images | jax.Array) -> int:
    """Return how many rows pass together: `ENCODE_BATCH`, or for images above 64 x 64 as many as have that many 64 x 64 images' pixels."""
    pixels = rows.shape[1] * rows.shape[2] if rows.ndim == 4 else 1
    return min(len(rows), max(1, ENCODE_BATCH * 64**2 // max(64**2, pixels)))


def in_batches(fn: Callable[[jax.Array], Any], rows: Images | jax.Array, allocate: Callable[..., np.ndarray] = np.empty) -> Any:
    """Apply a jitted function to batches of one shape and return its rows, an array or a tree of them; the last batch is padded.

    `allocate` makes an array of a shape and a dtype, such as a `ssdd_jax.io.scratch.Scratch` does.
    """
    size, results = encode_batch_size(rows), None
    for start in range(0, len(rows), size):
        part = _apply(fn, np.asarray(rows[start : start + size]), size)
        if results is None:
            results = jax.tree.map(lambda leaf: allocate((len(rows), *leaf.shape[1:]), leaf.dtype), part)
        for whole, leaf in zip(jax.tree.leaves(results), jax.tree.leaves(part), strict=True):
            whole[start : start + size] = leaf
    return results


class GrowingFile:
    """An .npy file of float32 rows "n width", written in order; an interrupted one is resumed, and renamed when complete.

    Args:
        file: path of the complete file.
        shape: (n, width).

    Attributes:
        rows: the array, memory-mapped; rows from `done` on are not written yet.
        done: number of rows that are there.

    Raises:
        StorageError: there is not enough space.
    """

    def __init__(self, file: Path, shape: tuple[int, int]):
        self.file, self._partial, self._record = file, file.with_suffix(".partial"), file.with_suffix(".rows.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.done, digest = _rows_so_far(self._partial, self._record, shape)
        if not self.done:
            try:
                allocate_npy(self._partial, shape, np.float32)
            except OSError as error:
                raise StorageError(f"cannot write {file}: {error.strerror or error}; free space and run the same command again") from error
        self.rows = np.lib.format.open_memmap(self._partial, mode="r+")
        self._digest = digest or hashlib.sha256()

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows; if the run ends before `record`, they are written again."""
        place = slice(self.done, self.done + len(rows))
        self.rows[place] = rows
        self._digest.update(self.rows[place].tobytes())
        self.done = place.stop

    def record(self) -> None:
        """Make what has been written last, whenever the run ends."""
        self.rows.flush()
        write_json(self._record, {"done": self.done, "sha256": self._digest.hexdigest()})

    def complete(self) -> None:
        """Give the file its name."""
        self.rows.flush()
        # The digest comes first, so that a file under its final name always has one.
        write_json(_digest_file(self.file), {**_about(self.rows), "sha256": self._digest.hexdigest()})
        self._partial.replace(self.file)
        self._record.unlink(missing_ok=True)


def encode_to_file(
    fn: Callable[[jax.Array, jax.Array], jax.Array], images: Images, width: int, file: Path, display: Display, name: str
) -> None:
    """Write fn(batch of images, their rows) for all images to an .npy file of float32 "n width".

    An interrupted file is resumed, and renamed when complete. A file that has changed since it was written is written again.
    """
    if is_intact(file, display):
        return
    growing, size = GrowingFile(file, (len(images), width)), encode_batch_size(images)
    with display.task(name, len(images)) as task:
        for number, start in enumerate(range(growing.done, len(images), size)):
            rows = np.arange(start, min(start + size, len(images)))
            encoded = _apply(lambda pair: fn(*pair), (images[start : start + size], rows), size)
            if not np.isfinite(encoded).all():
                bad = start + int(np.argmin(np.isfinite(encoded).all(1)))
                raise NumericalError(f"{name}: the teacher's output for image {bad} is not finite; pretrain it with a lower learning rate")
            growing.append(encoded)
            task.advance(growing.done)
            if number % RECORD_EVERY == RECORD_EVERY - 1:
                growing.record()
    growing.complete()


def is_intact(file: Path, display: Display) -> bool:
    """Return whether a file of `GrowingFile` is complete and as it was written; one that has changed is reported and removed."""
    if not file.exists():
        return False
    reason = damaged_encoding(file)
    if reason:
        display.print(f"warning: {file}: {reason}; it is recomputed")
        file.unlink()
    return not reason


def damaged_encoding(file: Path) -> str:
    """Return what is wrong with a file that `GrowingFile` has written, or "" if nothing is; reads all of it."""
    try:
        expected = json.loads(_digest_file(file).read_bytes())
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
        whole = expected == {**_about(rows), "sha256": _digest(rows, len(rows)).hexdigest()}
    except (OSError, ValueError, OverflowError, EOFError) as error:
        return f"it, or {_digest_file(file).name}, cannot be read ({type(error).__name__})"
    return "" if whole else "it has changed since it was written"


def _rows_so_far(partial: Path, record: Path, shape: tuple[int, int]) -> tuple[int, Any]:
    """Return how many rows of a file an earlier attempt has left, and their digest to continue; (0, None) if none."""
    try:
        about = json.loads(record.read_bytes())
        rows = np.load(partial, mmap_mode="r", allow_pickle=False)
        digest = _digest(rows, about["done"])
        if rows.shape == shape and rows.dtype == np.float32 and digest.hexdigest() == about["sha256"]:
            return about["done"], digest
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return 0, None


def _about(rows: np.ndarray) -> dict[str, Any]:
    return {"shape": list(rows.shape), "dtype": rows.dtype.str}


def _digest(rows: np.ndarray, count: int) -> Any:
    """Return the sha256 of the first rows, read block by block."""
    digest = hashlib.sha256()
    size = max(1, DIGEST_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, count, size):
        digest.update(np.ascontiguousarray(rows[start : min(start + size, count)]).tobytes())
    return digest


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256.json")


def _apply(fn: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Apply a function to a batch padded with zeros to `size`, and drop the results for the padding."""
    kept = len(jax.tree.leaves(batch)[0])
    fill = lambda leaf: np.concatenate([leaf, np.zeros((size - kept, *leaf.shape[1:]), leaf.dtype)]) if kept < size else leaf
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:kept], fn(jax.tree.map(lambda leaf: jnp.asarray(fill(np.asarray(leaf))), batch)))
