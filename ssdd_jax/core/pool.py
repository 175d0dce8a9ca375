"""The pool of inner models, whose features the regression runs on.

Everything is written for one member; a pool is the same type with a leading axis. Whether a member trains or starts
afresh is data, not control flow, so that it vmaps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssdd_jax.core.learner import Learner, Variables


@struct.dataclass
class MemberState:
    """One inner model, or a pool of them with a leading axis on every leaf.

    Attributes:
        variables: parameters and batch statistics.
        opt_state: state of the inner optimizer.
        age: number of updates since the last reset.
    """

    variables: Variables
    opt_state: Any
    age: Int[Array, ""]


def init_member(key: PRNGKeyArray, learner: Learner, optimizer: optax.GradientTransformation) -> MemberState:
    """Return a fresh member of age 0."""
    variables = learner.init(key)
    return MemberState(variables=variables, opt_state=optimizer.init(variables["params"]), age=jnp.zeros((), jnp.int32))


def mean_squared_error(outputs: Float[Array, "n d"], targets: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the mean over rows and width."""
    return jnp.mean((outputs - targets) ** 2)


def half_squared_error(outputs: Float[Array, "n d"], targets: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the mean over rows of half the squared distance, a sum over the width (FRePo)."""
    return jnp.mean(jnp.sum((outputs - targets) ** 2, -1)) / 2


def train_member(
    member: MemberState,
    images: Float[Array, "n H W C"],
    targets: Array,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Any] = mean_squared_error,
    has_aux: bool = False,
) -> tuple[MemberState, Any]:
    """Do one training-mode step on loss(outputs, targets); return the member, one update older, and its loss before the step.

    Targets are "n d", or whatever the loss takes.
    With `has_aux` the loss returns a pair, as for `jax.grad`, and so is what is returned of it.
    """

    def loss_fn(params):
        outputs, batch_stats = learner.apply_train({**member.variables, "params": params}, images)
        value = loss(outputs, targets)
        return value[0] if has_aux else value, (value, batch_stats)

    params = member.variables["params"]
    (_, (value, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, member.opt_state, params)
    variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
    return MemberState(variables=variables, opt_state=opt_state, age=member.age + 1), value


def train_or_reset(
    key: PRNGKeyArray,
    member: MemberState,
    images: Float[Array, "n H W C"],
    reprs: Float[Array, "n d"],
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    max_age: int,
    loss: Callable[..., Any] = mean_squared_error,
) -> tuple[MemberState, Float[Array, ""]]:
    """Train a member for one step on loss(outputs, targets), or replace it by a fresh one once it has had `max_age` updates.

    A fresh member has age 0 and trains from the next time it is drawn: the intent of KRR-ST, whose released code leaves
    the counter at its limit and so never trains a replaced member.
    """
    trained, value = train_member(member, images, reprs, learner, optimizer, loss)
    # Initializing a network takes a good part of an update's time, so it is done only when needed, unless this is vmapped.
    return jax.lax.cond(member.age >= max_age, lambda: init_member(key, learner, optimizer), lambda: trained), value


def take(pool: MemberState, index: Int[Array, " K"]) -> MemberState:
    """Return the chosen members, stacked."""
    # Taken alone, a row is a slice that XLA's CPU backend takes anew for every number that the row is multiplied with, a pixel at a time.
    # Two rows it gathers first. Kernels, which have more axes, are copied for their products anyway.
    twice = jnp.concatenate([index, index[:1]])
    return jax.tree.map(lambda leaf: leaf[twice][:-1] if leaf.ndim == 2 else leaf[index], pool)


def put(pool: MemberState, index: Int[Array, " K"], members: MemberState) -> MemberState:
    """Return the pool with the chosen members replaced; the others are unchanged bit for bit."""
    return jax.tree.map(lambda leaf, new: leaf.at[index].set(new), pool, members)


def over_leading_axis(fn: Callable, in_axes: tuple[int | None, ...] | int = 0) -> Callable:
    """Map `fn` over a leading axis: `jax.vmap`, but an axis of length one runs `fn` as it is written.

    Batching over convolution kernels makes a grouped convolution, which XLA runs many times slower on CPUs.
    """

    def mapped(*args):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        lengths = {leaf.shape[0] for arg, axis in zip(args, axes, strict=True) if axis == 0 for leaf in jax.tree.leaves(arg)}
        if lengths != {1}:
            return jax.vmap(fn, axes)(*args)
        squeezed = [arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg) for arg, axis in zip(args, axes, strict=True)]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], fn(*squeezed))

    return mapped
