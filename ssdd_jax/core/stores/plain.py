"""Rows, stored directly."""

from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.stores.store import StoreKind


@struct.dataclass
class Plain:
    """Rows that are stored directly.

    Attributes:
        rows: "m p", "T m p" for T views, or images "m h w C".
    """

    rows: Float[Array, "*m p"]

    @property
    def codes(self) -> Float[Array, "*m p"]:
        """Return the rows."""
        return self.rows

    @property
    def bases(self) -> None:
        """Return None: the codes are the rows."""
        return None

    def decode(self, codes: Float[Array, "*m p"]) -> Float[Array, "*m p"]:
        """Return the codes."""
        return codes

    def take(self, index: Int[Array, " k"], axis: int) -> "Plain":
        """Return the chosen rows or views."""
        return Plain(self.rows[(slice(None),) * axis + (index,)])


STORE = StoreKind(Plain, lambda sizes: Plain)
