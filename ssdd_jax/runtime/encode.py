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
DIGEST_ROWS = 4096


def encode_batch_size(rows: Images | jax.Array) -> int:
    """Return how many rows pass together: `ENCODE_BATCH`, or for images above 64 x 64 as many as have that many 64 x 64 images' pixels."""
    pixels = rows.shape[1] * rows.shape[2] if rows.ndim == 4 else 1
    return min(len(rows), max(1, ENCODE_BATCH * 64**2 // max(64**2, pixels)))


def in_batches(fn: Callable[[jax.Array], Any], rows: Images | jax.Array) -> Any:
    """Apply a jitted function to batches of one shape and return its rows, an array or a tree of them; the last batch is padded."""
    size = encode_batch_size(rows)
    results = [_apply(fn, np.asarray(rows[start : start + size]), size) for start in range(0, len(rows), size)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


def encode_to_file(
    fn: Callable[[jax.Array, jax.Array], jax.Array], images: Images, width: int, file: Path, display: Display, name: str
) -> None:
    """Write fn(batch of images, their rows) for all images to an .npy file of float32 "n width".

    An interrupted file is resumed, and renamed when complete. A file that has changed since it was written is written again.
    """
    if file.exists():
        reason = damaged_encoding(file)
        if not reason:
            return
        display.print(f"warning: {file}: {reason}; it is recomputed")
        file.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, record = file.with_suffix(".partial"), file.with_suffix(".rows.json")
    shape, size = (len(images), width), encode_batch_size(images)
    done, digest = _encoded_so_far(partial, record, shape)
    if not done:
        try:
            allocate_npy(partial, shape, np.float32)
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error.strerror or error}; free space and run the same command again") from error
    target = np.lib.format.open_memmap(partial, mode="r+")
    digest = digest or hashlib.sha256()
    with display.task(name, len(images)) as task:
        for number, start in enumerate(range(done, len(images), size)):
            rows = np.arange(start, min(start + size, len(images)))
            encoded = _apply(lambda pair: fn(*pair), (images[start : start + size], rows), size)
            if not np.isfinite(encoded).all():
                bad = start + int(np.argmin(np.isfinite(encoded).all(1)))
                raise NumericalError(f"{name}: the teacher's output for image {bad} is not finite; pretrain it with a lower learning rate")
            target[start : start + len(rows)] = encoded
            digest.update(target[start : start + len(rows)].tobytes())
            task.advance(start + len(rows))
            if number % RECORD_EVERY == RECORD_EVERY - 1:
                target.flush()
                write_json(record, {"done": start + len(rows), "sha256": digest.hexdigest()})
    target.flush()
    # The digest comes first, so that a file under its final name always has one.
    write_json(_digest_file(file), {**_about(target), "sha256": digest.hexdigest()})
    partial.replace(file)
    record.unlink(missing_ok=True)


def damaged_encoding(file: Path) -> str:
    """Return what is wrong with a file that `encode_to_file` has written, or "" if nothing is; reads all of it."""
    try:
        expected = json.loads(_digest_file(file).read_bytes())
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
        whole = expected == {**_about(rows), "sha256": _digest(rows, len(rows)).hexdigest()}
    except (OSError, ValueError, OverflowError, EOFError) as error:
        return f"it, or {_digest_file(file).name}, cannot be read ({type(error).__name__})"
    return "" if whole else "it has changed since it was written"


def _encoded_so_far(partial: Path, record: Path, shape: tuple[int, int]) -> tuple[int, Any]:
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
    for start in range(0, count, DIGEST_ROWS):
        digest.update(np.ascontiguousarray(rows[start : min(start + DIGEST_ROWS, count)]).tobytes())
    return digest


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256.json")


def _apply(fn: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Apply a function to a batch padded with zeros to `size`, and drop the results for the padding."""
    kept = len(jax.tree.leaves(batch)[0])
    fill = lambda leaf: np.concatenate([leaf, np.zeros((size - kept, *leaf.shape[1:]), leaf.dtype)]) if kept < size else leaf
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:kept], fn(jax.tree.map(lambda leaf: jnp.asarray(fill(np.asarray(leaf))), batch)))
