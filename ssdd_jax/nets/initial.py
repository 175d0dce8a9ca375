"""Initial values of parameters. All of a network's are drawn at once: a draw for every layer would be most of what a step compiles."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Initializer = Callable[..., Float[Array, "*shape"]]

DRAWS: dict[str, Callable[..., Array]] = {
    "uniform": partial(jax.random.uniform, dtype=jnp.float32, minval=-1.0, maxval=1.0),
    "normal": partial(jax.random.normal, dtype=jnp.float32),
    # At two standard deviations, and divided by what is then left of one.
    "truncated": lambda key, shape: jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) / 0.87962566103423978,
}
"""Distributions of scale 1: within +-1, or of standard deviation 1."""


class _Source:
    """Values of every kind, handed out in the order in which layers ask; without values it only counts."""

    def __init__(self, values: Mapping[str, Array] | None = None):
        self.values, self.taken = values, Counter()

    def take(self, kind: str, shape: Sequence[int]) -> Array:
        first = self.taken[kind]
        self.taken[kind] += prod(shape)
        return jnp.zeros(shape) if self.values is None else self.values[kind][first : self.taken[kind]].reshape(shape)


_current: ContextVar[_Source | None] = ContextVar("what initial values are taken from", default=None)


@contextmanager
def _taken_from(source: _Source) -> Iterator[_Source]:
    before = _current.set(source)
    try:
        yield source
    finally:
        _current.reset(before)


def initializer(kind: str, scale: Callable[[Sequence[int]], float]) -> Initializer:
    """Return flax's init(key, shape, dtype); within `at_once` the values are a part of the network's one draw, elsewhere the key's.

    Args:
        kind: a distribution in `DRAWS`.
        scale: shape -> the factor of its values.
    """

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        source = _current.get()
        values = DRAWS[kind](key, shape) if source is None else source.take(kind, shape)
        return (scale(shape) * values).astype(dtype)

    return init


def fan_in(shape: Sequence[int]) -> int:
    """Return how many inputs an output of a kernel "*window inputs outputs" has."""
    return prod(shape[:-1])


def fan_out(shape: Sequence[int]) -> int:
    """Return how many outputs an input of a kernel "*window inputs outputs" has."""
    return prod(shape[:-2]) * shape[-1]


# PyTorch's default for convolutions and linear layers: weight and bias uniform in +-1/sqrt(fan_in).
torch_kernel_init = initializer("uniform", lambda shape: fan_in(shape) ** -0.5)
# ResNets: He normal over fan_out.
kaiming_fan_out_init = initializer("normal", lambda shape: (2 / fan_out(shape)) ** 0.5)
lecun_normal_init = initializer("truncated", lambda shape: fan_in(shape) ** -0.5)


def torch_bias_init(inputs: int) -> Initializer:
    """Return the initializer of a bias, uniform in +-1/sqrt(inputs); `inputs` is the fan-in of the kernel beside it."""
    return initializer("uniform", lambda shape: inputs**-0.5)


def at_once(init: Callable[[PRNGKeyArray], Any]) -> Callable[[PRNGKeyArray], Any]:
    """Return `init` with one draw for all its parameters of a kind, instead of one for each."""

    @cache
    def counts() -> Counter:
        with _taken_from(_Source()) as counted:
            jax.eval_shape(init, jax.random.key(0))
        return counted.taken

    def whole(key: PRNGKeyArray) -> Any:
        values = {kind: DRAWS[kind](jax.random.fold_in(key, list(DRAWS).index(kind)), (count,)) for kind, count in counts().items()}
        with _taken_from(_Source(values)):
            return init(key)

    return whole
