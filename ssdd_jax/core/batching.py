"""Rows that are computed a part at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_CHUNK = 32
"""Fewer rows at a time do not keep a device busy."""


def split(rows: Float[Array, "n *row"], rows_at_once: int) -> Float[Array, "parts size *row"]:
    """Return rows as the fewest parts of one size that have at most so many rows each; zeros fill up the last."""
    num_parts = -(-len(rows) // rows_at_once)
    size = -(-len(rows) // num_parts)
    filled = jnp.pad(rows, ((0, num_parts * size - len(rows)), *((0, 0),) * (rows.ndim - 1)))
    return filled.reshape(num_parts, size, *rows.shape[1:])


def in_parts(fn: Callable[[Array], Array], rows: Float[Array, "n *row"], rows_at_once: int, *, remat: bool = False) -> Array:
    """Return fn(rows), computed for at most so many rows at a time, one part after the other; 0 takes all at once.

    `fn` treats every row alike and apart from the others. Memory is that of one part; where gradients are taken, only with `remat`,
    which computes a part's activations again for its gradient instead of keeping them.
    """
    fn = jax.checkpoint(fn) if remat else fn
    if not 0 < rows_at_once < len(rows):
        return fn(rows)
    results = jax.lax.map(fn, split(rows, rows_at_once))
    # What the zeros at the end give is dropped.
    return results.reshape(-1, *results.shape[2:])[: len(rows)]
