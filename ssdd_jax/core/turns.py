"""Pools of several architectures, one after the other: a step works on one of them, so that a set fits networks of every kind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array, Int, PRNGKeyArray

from ssdd_jax.core.distilled import DistilledSet
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.outer import OuterState, init_outer

Step = Callable[..., tuple[OuterState, dict[str, Array]]]


def key_of_pool(key: PRNGKeyArray, index: int) -> PRNGKeyArray:
    """Return the key of one of the pools: that of the first is the key itself."""
    return jax.random.fold_in(key, index) if index else key


def init_in_turn(key: PRNGKeyArray, distilled: DistilledSet, *, kernels: Sequence[Kernel], **settings: Any) -> OuterState:
    """Return `init_outer` for several kernels, with a tuple of their pools; for one kernel its state as it is."""
    first, *others = (init_outer(key_of_pool(key, i), distilled, kernel=kernel, **settings) for i, kernel in enumerate(kernels))
    return replace(first, pool=(first.pool, *(state.pool for state in others))) if others else first


def on_pool(index: int, step: Step) -> Step:
    """Return a step that works on one of the pools of a state and leaves the others."""

    def step_on_pool(state: OuterState, *args: Any) -> tuple[OuterState, dict[str, Array]]:
        pools = state.pool
        state, metrics = step(replace(state, pool=pools[index]), *args)
        return replace(state, pool=(*pools[:index], state.pool, *pools[index + 1 :])), metrics

    return step_on_pool


def in_turn(steps: Sequence[Step]) -> Callable[[Int[Array, ""], OuterState], tuple[OuterState, dict[str, Array]]]:
    """Return step(number, state, *args), which is steps[number mod A], each on its own of the state's A pools; one alone is as it is.

    The number must not be mapped over, or every step would do all of them.
    """
    if len(steps) == 1:
        return lambda number, state, *args: steps[0](state, *args)
    branches = [on_pool(index, step) for index, step in enumerate(steps)]
    return lambda number, state, *args: jax.lax.switch(number % len(branches), branches, state, *args)
