"""Hard labels, each kept as one number: the index of its class."""

from typing import NoReturn

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.stores.store import StoreKind, StoreSizes


@struct.dataclass
class Classes:
    """One-hot rows "m k", or "T m k", kept as the places of their ones.

    Attributes:
        index: classes "m 1" or "T m 1", whole numbers in [0, k) as floats.
        columns: "0 k", no numbers at all: its shape is where the number of classes is kept.
    """

    index: Float[Array, "*m 1"]
    columns: Float[Array, "0 k"]

    @property
    def codes(self) -> Float[Array, "*m 1"]:
        """Return the classes."""
        return self.index

    @property
    def bases(self) -> None:
        """Return None: there are no bases."""
        return None

    def decode(self, codes: Float[Array, "*m 1"]) -> Float[Array, "*m k"]:
        """Return the one-hot rows of classes."""
        return jax.nn.one_hot(codes[..., 0].astype(jnp.int32), self.columns.shape[1])

    def take(self, index: Int[Array, " n"], axis: int) -> "Classes":
        """Return the chosen rows or views."""
        return Classes(self.index[(slice(None),) * axis + (index,)], self.columns)


def hard_labels(rows: Float[Array, "*m k"]) -> Classes:
    """Keep of each row the place of its largest number: all of it, if the row is one-hot."""
    return Classes(jnp.argmax(rows, -1, keepdims=True).astype(jnp.float32), jnp.zeros((0, rows.shape[-1])))


def _refuse(sizes: StoreSizes) -> NoReturn:
    raise ValueError("store 'classes' keeps hard labels, expected one for images or representations, such as 'plain'")


STORE = StoreKind(Classes, _refuse)
