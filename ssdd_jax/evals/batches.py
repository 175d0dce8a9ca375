"""Minibatches as a function of the step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray


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
