"""Real rows drawn class by class, as methods of labels match them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray


class ClassRows:
    """Draws up to b rows of every class without replacement; a class of fewer rows gives all that it has.

    Args:
        labels: classes "n" of all rows, integers in [0, num_classes), each of which occurs.
        num_classes: number of classes k.
        per_class: how many rows of a class to draw.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, per_class: int):
        counts = np.bincount(labels, minlength=num_classes)
        order, ends = np.argsort(labels, kind="stable"), np.cumsum(counts)
        self._members = np.zeros((num_classes, counts.max()), np.int32)
        for label, (end, count) in enumerate(zip(ends, counts, strict=True)):
            self._members[label, :count] = order[end - count : end]
        self._is_member = np.arange(counts.max()) < counts[:, None]
        self.size = int(min(per_class, counts.max()))
        """The number b of a class's rows."""
        self.weights = jnp.asarray(self._is_member[:, : self.size], jnp.float32)
        """Weights "k b" of what is drawn: 1, or 0 where a class has no more rows."""

    def draw(self, key: PRNGKeyArray) -> Int[Array, "k b"]:
        """Return rows; those of weight 0 are any."""
        members = jnp.asarray(self._members)
        # In the order of random numbers; what is no member comes last.
        order = jnp.argsort(jnp.where(jnp.asarray(self._is_member), jax.random.uniform(key, members.shape, jnp.float32), 2.0), axis=1)
        return jnp.take_along_axis(members, order[:, : self.size], axis=1)


def by_class(rows: Float[Array, "m *row"], num_classes: int) -> Float[Array, "k c *row"]:
    """Split rows that lie class after class, equally many of each."""
    return rows.reshape(num_classes, -1, *rows.shape[1:])


def class_keys(key: PRNGKeyArray, num_classes: int) -> Array:
    """Return a key for each class."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_classes))


def fewer_per_class(where: str, spec: Any, size: int, make: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings with fewer and fewer real images of a class, as `Phase.smaller` does, each with what is made of them.

    Args:
        where: config.methods.NAME.
        spec: settings with a `batch_per_class`.
        size: how many images of a class there are now.
        make: settings -> the phase.
    """
    while size > 1:
        size //= 2
        yield f"--{where}.batch_per_class={size}", make(replace(spec, batch_per_class=size))
