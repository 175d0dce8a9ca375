"""Functions of many rows, computed one part at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_CHUNK = 32
"""Fewer rows at a time would not keep a device busy."""


def split(rows: Float[Array, "n *row"], rows_at_once: int) -> Float[Array, "parts size *row"]:
    """Split rows into the fewest equal parts of at most `rows_at_once` rows; zeros fill up the last part."""
    num_parts = -(-len(rows) // rows_at_once)
    size = -(-len(rows) // num_parts)
    filled = jnp.pad(rows, ((0, num_parts * size - len(rows)), *((0, 0),) * (rows.ndim - 1)))
    return filled.reshape(num_parts, size, *rows.shape[1:])


def in_parts(fn: Callable[[Array], Array], rows: Float[Array, "n *row"], rows_at_once: int, *, remat: bool = False) -> Array:
    """Return fn(rows), computed one part of at most `rows_at_once` rows after the other; 0 means all rows at once.

    `fn` must treat every row alike and independently of the others. Memory is that of one part; where gradients are taken, only with
    `remat`, which recomputes a part's activations for its gradient instead of keeping them.
    """
    fn = jax.checkpoint(fn) if remat else fn
    if not 0 < rows_at_once < len(rows):
        return fn(rows)
    results = jax.lax.map(fn, split(rows, rows_at_once))
    # The results of the zeros at the end are dropped.
    return results.reshape(-1, *results.shape[2:])[: len(rows)]
