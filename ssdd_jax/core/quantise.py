"""Bits instead of numbers: a set whose numbers are whole multiples of a step per row, 8 or 4 bits each, and how much it stores.

Budgets of the field count numbers of 32 bits; sets do with fewer.
"""

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssdd_jax.core.distilled import DistilledSet, num_stored_scalars

BITS = (32, 8, 4)
"""Bits of a number; 32 are floats as they are."""
STEP_BITS = 32
"""Bits of the step of a row, a float."""


def rows_of(distilled: DistilledSet) -> DistilledSet:
    """Return, in place of every array, how many of its first axes count rows; numbers of a row share a step.

    A row is an image, a base, or the coefficients of an image, and a layer of a network.
    """
    of_store = lambda leaf: 1 if leaf.ndim == 4 else leaf.ndim - 1
    return replace(
        distilled,
        images=jax.tree.map(of_store, distilled.images),
        reprs=jax.tree.map(of_store, distilled.reprs),
        networks=jax.tree.map(lambda leaf: 1, distilled.networks),
    )


def levels(bits: int) -> int:
    """Return the largest multiple of the step: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def to_integers(rows: Float[Array, "..."], bits: int, leading: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Return whole numbers in [-levels(bits), levels(bits)] as int8, and the step of every row with axes of length 1 in place of its own.

    A row's largest number decides its step; a row of zeros has step 1.

    Args:
        rows: array whose first `leading` axes count rows.
        bits: 8 or 4.
        leading: number of these axes.
    """
    largest = jnp.max(jnp.abs(rows), axis=tuple(range(leading, rows.ndim)), keepdims=True, initial=0.0)
    step = jnp.where(largest > 0, largest, levels(bits)) / levels(bits)
    return jnp.clip(jnp.round(rows / step), -levels(bits), levels(bits)).astype(jnp.int8), step


def to_floats(integers: Int[Array, "..."], step: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the numbers that `to_integers` stands for."""
    return integers.astype(step.dtype) * step


def quantise(distilled: DistilledSet, bits: int) -> DistilledSet:
    """Round every number of a set to a multiple of its row's step. Gradients pass as if nothing were rounded (straight-through).

    Rounding twice is rounding once, up to the rounding of floats.

    Args:
        distilled: the set.
        bits: one of `BITS`; 32 returns the set as it is.

    Raises:
        ValueError: other bits.

    Example:
        >>> from ssdd_jax.core.distilled import Layout
        >>> from ssdd_jax.core.stores.plain import Plain
        >>> layout = Layout((1, 2, 1), (1, 2, 1))
        >>> some = DistilledSet(Plain(jnp.array([[[[7.0], [1.2]]]])), Plain(jnp.zeros((1, 1, 3))), None, layout)
        >>> quantise(some, 4).images.rows.ravel().tolist()
        [7.0, 1.0]
    """
    check_bits(bits)
    if bits == 32:
        return distilled
    return jax.tree.map(lambda leaf, leading: _rounded(leaf, bits, leading), distilled, rows_of(distilled))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _rounded(rows: Array, bits: int, leading: int) -> Array:
    return to_floats(*to_integers(rows, bits, leading))


@_rounded.defjvp
def _rounded_jvp(bits, leading, primals, tangents):
    return _rounded(*primals, bits, leading), tangents[0]


def check_bits(bits: int) -> None:
    """Raise a ValueError unless bits are among `BITS`."""
    if bits not in BITS:
        raise ValueError(f"bits is {bits}, expected one of {', '.join(map(str, BITS))}")


def stored_numbers(distilled: Any, bits: int = 32) -> int:
    """Return how many numbers of 32 bits a set takes whose numbers have `bits` and whose rows have a step each, rounded up.

    Args:
        distilled: a set, or its shapes.
        bits: one of `BITS`.
    """
    check_bits(bits)
    numbers = num_stored_scalars(distilled)
    if bits == 32:
        return numbers
    pairs = zip(jax.tree.leaves(distilled), jax.tree.leaves(rows_of(distilled)), strict=True)
    steps = sum(prod(leaf.shape[:leading]) for leaf, leading in pairs if prod(leaf.shape))
    return -(-(numbers * bits + steps * STEP_BITS) // 32)
