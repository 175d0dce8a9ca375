"""The interface of a store."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from ssdd_jax.core.bases import PCA


@runtime_checkable
class Store(Protocol):
    """Rows "m p", or rows "T m p" of T views, as a frozen dataclass whose fields are arrays.

    Row i of view t is decode(codes)[t, i]; approximation networks predict codes.
    """

    @property
    def codes(self) -> Float[Array, "*T m r"]:
        """Return the numbers that are kept for every row, as floats."""
        ...

    @property
    def bases(self) -> Float[Array, "r p"] | None:
        """Return B where a row is codes @ B + mean, or None where codes are the rows themselves."""
        ...

    def decode(self, codes: Float[Array, "*T m r"]) -> Float[Array, "*T m p"]:
        """Return the rows that the codes stand for."""
        ...

    def take(self, index: Int[Array, " k"], axis: int) -> "Store":
        """Return a store of only the chosen rows (or views); what all rows share, such as bases, is kept and receives gradients."""
        ...


Start = Callable[[Float[Array, "*T m p"]], Store]
"""Rows -> a store that holds them as closely as it can."""


class StoreSizes(NamedTuple):
    """What a method's settings say about a store.

    Attributes:
        num_bases: number of bases, for a store that has any.
        factor_scale: see `ssdd_jax.core.stores.factored.factored`.
        pca: number of components -> principal components of the real rows, fitted on first use.
        frequencies: K, see `ssdd_jax.core.stores.cosine`; 0 for representations.
    """

    num_bases: int
    factor_scale: float | str
    pca: Callable[[int], PCA]
    frequencies: int = 0


class StoreKind(NamedTuple):
    """A store that settings can name.

    Attributes:
        type: its dataclass, which files are read into.
        start: sizes -> a function that turns rows into the store; raises a ValueError if it is not for whatever rows settings name it for.
        uses: the counts of `StoreSizes` that it is built with, all of them above 0; it is not built where another one is.
    """

    type: type[Any]
    start: Callable[[StoreSizes], Start]
    uses: tuple[str, ...] = ()
