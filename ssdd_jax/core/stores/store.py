"""The interface of a store."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from ssdd_jax.core.bases import PCA


@runtime_checkable
class Store(Protocol):
    """Rows "m p", or rows of T views "T m p", as a frozen dataclass whose fields are arrays.

    Row i of view t is decode(codes)[t, i]; what approximation networks predict are codes.
    """

    @property
    def codes(self) -> Float[Array, "*T m r"]:
        """Return the numbers that are kept of every row, as floats."""
        ...

    @property
    def bases(self) -> Float[Array, "r p"] | None:
        """Return B where a row is codes @ B and a mean, or None where codes are the rows themselves."""
        ...

    def decode(self, codes: Float[Array, "*T m r"]) -> Float[Array, "*T m p"]:
        """Return the rows of some codes."""
        ...

    def take(self, index: Int[Array, " k"], axis: int) -> "Store":
        """Return the store of the chosen rows, or views, alone; what they share is shared, and differentiable as such."""
        ...


Start = Callable[[Float[Array, "*T m p"]], Store]
"""Rows to a store that holds them, as nearly as it can."""


class StoreSizes(NamedTuple):
    """What a method's settings say of a store.

    Attributes:
        num_bases: how many bases, where it has any.
        factor_scale: see `ssdd_jax.core.stores.factored.factored`.
        pca: number of components -> principal components of the real rows, fitted on first use.
    """

    num_bases: int
    factor_scale: float | str
    pca: Callable[[int], PCA]


class StoreKind(NamedTuple):
    """A store that settings can name.

    Attributes:
        type: its dataclass, which a file is read into.
        start: sizes -> how rows get into it.
    """

    type: type[Any]
    start: Callable[[StoreSizes], Start]
