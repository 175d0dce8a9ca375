"""What differs between the versions of jax that are supported, and what none of them has in public."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh


def make_mesh(shape: Sequence[int], names: Sequence[str]) -> Mesh:
    """Return a mesh of all devices whose shardings the compiler propagates, which is the default up to jax 0.8."""
    kind: Any = getattr(jax.sharding, "AxisType", None)
    kwargs: dict[str, Any] = {} if kind is None else {"axis_types": (kind.Auto,) * len(names)}
    return jax.make_mesh(tuple(shape), tuple(names), **kwargs)
