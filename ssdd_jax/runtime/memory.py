"""How much memory a step takes, how much there is, and how many rows fit at a time."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ssdd_jax.core.batching import MIN_CHUNK
from ssdd_jax.core.pool import Learner
from ssdd_jax.errors import InputError
from ssdd_jax.runtime.devices import on_cpu
from ssdd_jax.settings.spec import MemorySpec

# Activations up to this many bytes stay in a CPU's caches from one layer to the next.
CACHED_BYTES = 2**24


class TooLarge(InputError):
    """A step takes more memory than there is."""


def chunk_size(spec: MemorySpec, learner: Learner, image_shape: tuple[int, int, int]) -> int:
    """Return how many images pass through a member together, 0 for all of them; chosen here if the settings leave it open."""
    if spec.chunk_size or not on_cpu():
        return spec.chunk_size
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(learner.features)(jax.eval_shape(learner.init, jax.random.key(0)), image)
    largest = max(_activation_bytes(jaxpr.jaxpr), default=1)
    return max(MIN_CHUNK, CACHED_BYTES // largest)


def _activation_bytes(jaxpr: Any) -> Iterator[int]:
    """Yield the size in bytes of every intermediate image batch (four axes, the first of length one)."""
    for equation in jaxpr.eqns:
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _activation_bytes(inner)
        for variable in equation.outvars:
            shape = variable.aval.shape
            if len(shape) == 4 and shape[0] == 1:
                yield prod(shape) * variable.aval.dtype.itemsize


def step_bytes(compiled: Any) -> int | None:
    """Return the bytes that a compiled step takes, including its arguments, or None if the platform does not say."""
    about = compiled.memory_analysis()
    if about is None:
        return None
    kept = about.argument_size_in_bytes + about.output_size_in_bytes - about.alias_size_in_bytes
    return kept + about.temp_size_in_bytes


def limit_bytes(spec: MemorySpec) -> int | None:
    """Return the bytes that a step may take: the settings' limit, or all of the device's memory, or None if the device does not say."""
    if spec.limit_gb:
        return int(spec.limit_gb * 1e9)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limit()])
    return (device.memory_stats() or {}).get("bytes_limit")


def _group_limit() -> Iterator[int]:
    """Yield the limit of the control group that the process is in, if it is set and can be read."""
    try:
        yield int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return


def check_fits(compiled: Any, limit: int) -> None:
    """Refuse a step that takes more memory than there is.

    Raises:
        TooLarge: the message says how much it takes and how much there is.
    """
    needed = step_bytes(compiled)
    if needed is not None and needed > limit:
        raise TooLarge(f"a step takes {in_words(compiled)} of memory, there is {limit / 1e9:.3g} GB")


def in_words(compiled: Any) -> str:
    """Return in words how much memory a compiled step takes."""
    needed = step_bytes(compiled)
    return "an unknown amount" if needed is None else f"{needed / 1e9:.3g} GB"
