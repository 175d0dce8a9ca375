"""Pools of several architectures, one after the other: a step works on one of them, so that a set fits networks of every kind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from ssdd_jax.core.distilled import DistilledSet
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.outer import OuterState, init_outer

Step = Callable[..., tuple[OuterState, dict[str, Array]]]


def key_of_pool(key: PRNGKeyArray, index: int) -> PRNGKeyArray:
    """Return the key of one of the pools: that of the first is the key itself."""
    return jax.random.fold_in(key, index) if index else key


def init_in_turn(key: PRNGKeyArray, distilled: DistilledSet, *, kernels: Sequence[Kernel], **settings: Any) -> OuterState:
    """Return the state before the first step of `in_turn`.

    Args:
        key: of the pools' initial members.
        distilled: the distilled set.
        kernels: one for each architecture.
        settings: the other arguments of `ssdd_jax.core.outer.init_outer`, the same for all kernels.

    Returns:
        The state of `init_outer`, with a tuple of the kernels' pools; for one kernel its state as it is.
    """
    first, *others = (init_outer(key_of_pool(key, i), distilled, kernel=kernel, **settings) for i, kernel in enumerate(kernels))
    return replace(first, pool=(first.pool, *(state.pool for state in others))) if others else first


def on_pools(steps: Sequence[Step]) -> list[Step]:
    """Return the steps, each on its own of a state's pools, and leaving the others; one alone is as it is."""
    return [_on_pool(index, step) for index, step in enumerate(steps)] if len(steps) > 1 else list(steps)


def _on_pool(index: int, step: Step) -> Step:
    def step_on_pool(state: OuterState, *args: Any) -> tuple[OuterState, dict[str, Array]]:
        pools = state.pool
        state, metrics = step(replace(state, pool=pools[index]), *args)
        return replace(state, pool=(*pools[:index], state.pool, *pools[index + 1 :])), metrics

    return step_on_pool


def in_turn(steps: Sequence[Step]) -> Callable[..., tuple[OuterState, dict[str, Array]]]:
    """Return step(number, state, *args), which is steps[number mod A], each on its own of the state's A pools; one alone is as it is.

    The number of the step, an integer, must not be mapped over, or every step would do all of them.

    Example:
        >>> step = jax.jit(in_turn([make_outer_step(kernel=kernel, **settings) for kernel in kernels]))  # doctest: +SKIP
        >>> state = init_in_turn(jax.random.key(0), distilled, kernels=kernels, pool_size=5, **optimizers)  # doctest: +SKIP
        >>> state, metrics = step(number, state, images, reprs, key)  # doctest: +SKIP
    """
    branches = on_pools(steps)
    if len(branches) == 1:
        return lambda number, state, *args: branches[0](state, *args)
    return lambda number, state, *args: jax.lax.switch(number % len(branches), branches, state, *args)
