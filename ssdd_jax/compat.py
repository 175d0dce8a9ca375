"""What differs between the supported versions of jax, and what none of them makes public."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh


def make_mesh(shape: Sequence[int], names: Sequence[str]) -> Mesh:
    """Return a mesh of all devices whose shardings the compiler propagates, as was the default up to jax 0.8."""
    kind: Any = getattr(jax.sharding, "AxisType", None)
    kwargs: dict[str, Any] = {} if kind is None else {"axis_types": (kind.Auto,) * len(names)}
    return jax.make_mesh(tuple(shape), tuple(names), **kwargs)


def cache_is_sound() -> bool:
    """Return whether a program that is read from the persistent cache computes what it did.

    On CPUs jaxlib 0.5 loses the LAPACK calls of such a program: a factor is then NaN or noise.
    """
    return jax.default_backend() != "cpu" or jax.__version_info__ >= (0, 6)


def connect(heartbeat_s: int, **where: Any) -> None:
    """Call `jax.distributed.initialize`; a process that does not answer for `heartbeat_s` counts as lost (jax 0.5: 100 s)."""
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # The preemption service would handle SIGTERM itself.
        jax.config.update("jax_enable_preemption_service", False)
    known = inspect.signature(jax.distributed.initialize).parameters
    jax.distributed.initialize(**where, **({"heartbeat_timeout_seconds": heartbeat_s} if "heartbeat_timeout_seconds" in known else {}))


def coordinator() -> Any:
    """Return the client of the coordination service, whose key-value store is not public (Orbax uses the same one)."""
    from jax._src import distributed

    return distributed.global_state.client
