"""Whether the numbers of a loop are finite: checked inside the jitted step, read by the host occasionally."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.errors import Status


class NumericalError(ArithmeticError):
    """A number went bad; the message is one line."""

    status = Status.NUMBERS


def not_finite(metrics: Mapping[str, jax.Array], state: Any) -> dict[str, jax.Array]:
    """Return whether each metric, and each part of a state one level deep, holds NaN or infinity; works under jit."""
    parts: dict[str, list[Any]] = {name: [value] for name, value in metrics.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        parts.setdefault(jax.tree_util.keystr(path[:1]).strip(".[]'") or "state", []).append(leaf)
    floats = {name: [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)] for name, leaves in parts.items()}
    return {name: ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) for name, leaves in floats.items() if leaves}


def first_bad(flags: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[int, int, list[str]] | None:
    """Return the first (step number, index of the seed, names of what is not finite), or None.

    Args:
        flags: for every dispatch in order, the number of its first step and `not_finite` of its steps, each "L S".
    """
    for first, bad in flags:
        names = list(bad)
        table = np.stack([np.asarray(bad[name]) for name in names])
        if table.any():
            step = int(np.argmax(table.any((0, 2))))
            place = int(np.argmax(table[:, step].any(0)))
            return first + step, place, [name for name, is_bad in zip(names, table[:, step, place], strict=True) if is_bad]
    return None


def explain(names: Iterable[str], causes: Mapping[str, str], batch: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """Return in words what went bad, and the likely cause.

    Args:
        names: names of what is not finite.
        causes: causes and remedies by name, in the order in which a step computes them: once one goes bad, later ones follow.
        batch: the step's arrays, by name.
    """
    ordered = sorted(names, key=lambda name: list(causes).index(name) if name in causes else len(causes))
    cause = causes.get(ordered[0], "the learning rate; lower it")
    unfit = [key for key, array in batch.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if unfit:
        cause = f"{unfit[0]} of the batch is not finite to begin with; check the data and the teacher"
    return f"{', '.join(ordered)} {'are' if len(ordered) > 1 else 'is'} not finite", cause
