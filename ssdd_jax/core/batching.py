"""Functions of many rows, computed one part at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

MIN_CHUNK = 32
"""Fewer rows at a time would not keep a device busy."""


def split_in_chunks(rows: Float[Array, "n *row"], chunk_size: int) -> Float[Array, "parts size *row"]:
    """Split rows into the fewest equal parts of at most `chunk_size` rows; zeros fill up the last part."""
    num_parts, size = _equal_parts(len(rows), chunk_size)
    filled = jnp.pad(rows, ((0, num_parts * size - len(rows)), *((0, 0),) * (rows.ndim - 1)))
    return filled.reshape(num_parts, size, *rows.shape[1:])


def _equal_parts(num_rows: int, chunk_size: int) -> tuple[int, int]:
    """Return the number and the size of the fewest equal parts of at most `chunk_size` rows."""
    num_parts = -(-num_rows // chunk_size)
    return num_parts, -(-num_rows // num_parts)


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


def sum_in_chunks(fn: Callable[..., Array], rows: tuple[Float[Array, "n ..."], ...], chunk_size: int) -> Array:
    """Return the sum of fn(*rows), one part of at most `chunk_size` rows after the other.

    `fn` must be a sum over rows to which rows of zeros add nothing. Parts are cut out of the arrays as these are: XLA's CPU backend would
    merge splitting an array with what computes it, and not vectorize that. The gradient is that of splitting, though, since the one of
    cutting adds up arrays of the whole's size.
    """
    return _sum_of_cuts(rows, fn, chunk_size)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sum_of_cuts(rows: tuple[Array, ...], fn: Callable[..., Array], chunk_size: int) -> Array:
    length = len(rows[0])
    _, size = _equal_parts(length, chunk_size)
    whole = length // size
    cut = lambda number: (jax.lax.dynamic_slice_in_dim(part, number * size, size) for part in rows)
    total = jax.lax.fori_loop(0, whole, lambda number, total: total + fn(*cut(number)), _zeros(fn, rows))
    return total + fn(*(part[whole * size :] for part in rows)) if whole * size < length else total


def _sum_of_chunks(rows: tuple[Array, ...], fn: Callable[..., Array], chunk_size: int) -> Array:
    chunks = tuple(split_in_chunks(part, chunk_size) for part in rows)
    return jax.lax.scan(lambda total, chunk: (total + fn(*chunk), None), _zeros(fn, rows), chunks)[0]


def _zeros(fn: Callable[..., Array], rows: tuple[Array, ...]) -> Array:
    result = jax.eval_shape(fn, *rows)
    return jnp.zeros(result.shape, result.dtype)


def _sum_forward(rows: tuple[Array, ...], fn: Callable[..., Array], chunk_size: int) -> tuple[Array, tuple[Array, ...]]:
    return _sum_of_cuts(rows, fn, chunk_size), rows


def _sum_backward(fn: Callable[..., Array], chunk_size: int, rows: tuple[Array, ...], gradient: Array) -> Any:
    return jax.vjp(lambda rows: _sum_of_chunks(rows, fn, chunk_size), rows)[1](gradient)


_sum_of_cuts.defvjp(_sum_forward, _sum_backward)


def batches_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return how many batches of one epoch cover all rows."""
    return -(-num_rows // min(batch_size, num_rows))


# Not jitted, its loop would be compiled anew by every call.
@partial(jax.jit, static_argnums=(1, 2, 3))
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
