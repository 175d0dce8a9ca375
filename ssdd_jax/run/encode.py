"""Passing many images through a network, a batch at a time."""

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

ENCODE_BATCH = 512
# Batches between two records of how far a file has come.
RECORD_EVERY = 64


def encode_batch(rows: Images | jax.Array) -> int:
    """Return how many rows pass together: `ENCODE_BATCH`, or of images larger than 64 x 64 as many as have so many pixels."""
    pixels = rows.shape[1] * rows.shape[2] if rows.ndim == 4 else 1
    return min(len(rows), max(1, ENCODE_BATCH * 64**2 // max(64**2, pixels)))


def in_batches(fn: Callable[[jax.Array], Any], rows: Images | jax.Array) -> Any:
    """Apply a jitted function to batches of one shape and return its rows, an array or a tree of them; the last batch is padded."""
    size = encode_batch(rows)
    results = [_apply(fn, np.asarray(rows[start : start + size]), size) for start in range(0, len(rows), size)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


def encode_to_file(
    fn: Callable[[jax.Array, jax.Array], jax.Array], images: Images, width: int, file: Path, display: Display, name: str
) -> None:
    """Write fn(batch of images, their rows) of all images to an .npy file of float32 "n width".

    Cut off, it goes on where it was; the file has its name once it is whole.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, record = file.with_suffix(".partial"), file.with_suffix(".rows.json")
    shape, size = (len(images), width), encode_batch(images)
    done = json.loads(record.read_text())["done"] if record.is_file() and partial.is_file() else 0
    if not done:
        try:
            allocate_npy(partial, shape, np.float32)
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error.strerror or error}; free space and run the same command again") from error
    target = np.lib.format.open_memmap(partial, mode="r+")
    with display.task(name, len(images)) as task:
        for number, start in enumerate(range(done, len(images), size)):
            rows = np.arange(start, min(start + size, len(images)))
            encoded = _apply(lambda pair: fn(*pair), (images[start : start + size], rows), size)
            target[start : start + len(rows)] = encoded
            task.advance(start + len(rows))
            if number % RECORD_EVERY == RECORD_EVERY - 1:
                target.flush()
                write_json(record, {"done": start + len(rows)})
    target.flush()
    del target
    partial.replace(file)
    record.unlink(missing_ok=True)


def _apply(fn: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Apply a function to a batch filled up with zeros to `size`, and drop what belongs to them."""
    kept = len(jax.tree.leaves(batch)[0])
    fill = lambda leaf: np.concatenate([leaf, np.zeros((size - kept, *leaf.shape[1:]), leaf.dtype)]) if kept < size else leaf
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:kept], fn(jax.tree.map(lambda leaf: jnp.asarray(fill(np.asarray(leaf))), batch)))
