"""Functions of many rows, computed one part at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

MIN_CHUNK = 32
"""Fewer rows at a time would not keep a device busy."""


def split_in_chunks(rows: Float[Array, "n *row"], chunk_size: int) -> Float[Array, "parts size *row"]:
    """Split rows into the fewest equal parts of at most `chunk_size` rows; zeros fill up the last part."""
    num_parts = -(-len(rows) // chunk_size)
    size = -(-len(rows) // num_parts)
    filled = jnp.pad(rows, ((0, num_parts * size - len(rows)), *((0, 0),) * (rows.ndim - 1)))
    return filled.reshape(num_parts, size, *rows.shape[1:])


def map_in_chunks(fn: Callable[[Array], Array], rows: Float[Array, "n *row"], chunk_size: int, *, remat: bool = False) -> Array:
    """Return fn(rows), computed one part of at most `chunk_size` rows after the other; 0 means all rows at once.

    `fn` must treat every row alike and independently of the others. Memory is that of one part; where gradients are taken, only with
    `remat`, which recomputes a part's activations for its gradient instead of keeping them.
    """
    fn = jax.checkpoint(fn) if remat else fn
    if not 0 < chunk_size < len(rows):
        return fn(rows)
    results = jax.lax.map(fn, split_in_chunks(rows, chunk_size))
    # The results of the zeros at the end are dropped.
    return results.reshape(-1, *results.shape[2:])[: len(rows)]


def batches_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return how many batches of one epoch cover all rows."""
    return -(-num_rows // min(batch_size, num_rows))


def batch_schedule(key: PRNGKeyArray, num_rows: int, batch_size: int, num_steps: int) -> Int[Array, "s b"]:
    """Return the rows of every step's batch, every epoch being a fresh permutation, b = min(batch_size, num_rows).

    The last batch of an epoch is filled up from the epoch's beginning, so that shapes are static.
    """
    batch_size = min(batch_size, num_rows)
    per_epoch = batches_per_epoch(num_rows, batch_size)
    num_epochs = -(-num_steps // per_epoch)
    orders = jax.lax.map(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), num_rows), jnp.arange(num_epochs))
    padded = jnp.concatenate([orders, orders[:, : per_epoch * batch_size - num_rows]], axis=1)
    return padded.reshape(-1, batch_size)[:num_steps]
