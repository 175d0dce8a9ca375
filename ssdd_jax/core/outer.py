"""The outer loss and the outer step: everything that is differentiated through."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssdd_jax.core import pool as pools
from ssdd_jax.core.distilled import DistilledSet, expand, num_images, take_images
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.pool import mean_squared_error, over_leading_axis
from ssdd_jax.core.quantise import quantise
from ssdd_jax.core.sharding import Shard, replicate_then_shard, unsharded


@struct.dataclass
class OuterState:
    """The complete state of a distillation: what a checkpoint holds.

    Attributes:
        step: number of outer steps done.
        distilled: the distilled set.
        opt_state: state of the outer optimizer.
        pool: L members, stacked (`ssdd_jax.core.pool.MemberState`); None for a kernel without members; a tuple of such pools where several
            kernels take turns, see `ssdd_jax.core.turns`.
        ridge_increases: how many times a singular kernel's ridge was increased tenfold so far, see `solve_regularized`.
    """

    step: Int[Array, ""]
    distilled: DistilledSet
    opt_state: Any
    pool: Any
    ridge_increases: Int[Array, ""]


def support_rows(distilled: DistilledSet) -> tuple[Float[Array, "n H W C"], Float[Array, "n d"]]:
    """Return all views of the set as one batch, n = A m."""
    images, reprs = expand(distilled)
    return images.reshape(-1, *images.shape[2:]), reprs.reshape(-1, reprs.shape[-1])


Loss = Callable[[Array, Array], Array]
"""(predictions "b d", targets "b d") -> a scalar."""
Regularizer = Callable[[DistilledSet], Array]
"""The set, of which perhaps only some images take part -> a scalar that the outer loss adds."""
Rows = Callable[[PRNGKeyArray, DistilledSet], tuple[Array, Array]]
"""(key, set) -> images "n H W C" and targets "n d" that a member is trained on."""


def outer_loss(
    distilled: DistilledSet,
    variables: Any,
    images: Float[Array, "b H W C"],
    reprs: Float[Array, "b d"],
    *,
    kernel: Kernel,
    loss: Loss = mean_squared_error,
    regularizer: Regularizer | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Return mean((P - T(x_t))^2) on real images x_t (KRR-ST; all views are support rows), and how often the ridge was increased.

    Args:
        distilled: the set, with respect to which the loss is differentiated.
        variables: variables of one inner model; None for a kernel without members.
        images: real images "b H W C".
        reprs: the teacher's representations of them, or their labels, "b d".
        kernel: predicts P from the set's rows, such as `ssdd_jax.kernels.feature.feature_kernel(learner)`.
        loss: of the predictions, if it is another.
        regularizer: a term of the set itself that is added, if there is one.
    """
    predicted, increases = kernel.predict(variables, *support_rows(distilled), images)
    value = loss(predicted, reprs)
    return value if regularizer is None else value + regularizer(distilled), increases


def init_outer(
    key: PRNGKeyArray,
    distilled: DistilledSet,
    *,
    kernel: Kernel,
    optimizer: optax.GradientTransformation,
    inner_optimizer: optax.GradientTransformation | None = None,
    pool_size: int = 0,
    ages: Int[Array, " L"] | None = None,
) -> OuterState:
    """Return the state before the first step, with an untrained pool (see `make_warm_up_step`) where the kernel has members.

    The members' ages are `ages`, see `staggered_ages`, or 0.

    Raises:
        ValueError: the kernel has members and there is no `inner_optimizer`.
    """
    members, learner = None, kernel.learner
    if learner is not None:
        inner_optimizer = _required(inner_optimizer)
        members = jax.vmap(lambda k: pools.init_member(k, learner, inner_optimizer))(jax.random.split(key, pool_size))
        members = members if ages is None else replace(members, age=ages)
    # Every number in a buffer of its own, which nobody else holds, so that the state can be donated: a set may hold its caller's images,
    # or the bases of a PCA that is used again.
    distilled = jax.tree.map(jnp.copy, distilled)
    step, ridge_increases = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return OuterState(step=step, distilled=distilled, opt_state=optimizer.init(distilled), pool=members, ridge_increases=ridge_increases)


def _required(inner_optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    if inner_optimizer is None:
        raise ValueError("inner_optimizer is None, but the kernel has members; give the optimizer that trains them")
    return inner_optimizer


def image_sampler(key: PRNGKeyArray, total: int, count: int) -> Callable[[DistilledSet], DistilledSet]:
    """Return a function that restricts a set to `count` of its `total` images, drawn with the key; 0 keeps all of them."""
    if not 0 < count < total:
        return lambda distilled: distilled
    index = jax.random.permutation(key, total)[:count]
    return lambda distilled: take_images(distilled, index)


def set_reader(key: PRNGKeyArray, distilled: DistilledSet, support_images: int, bits: int) -> Callable[[DistilledSet], DistilledSet]:
    """Return a function of a set as a step reads it: the images that take part, see `image_sampler`, and every number in `bits`."""
    select = image_sampler(key, num_images(distilled), support_images)
    return lambda distilled: quantise(select(distilled), bits)


def make_outer_step(
    *,
    kernel: Kernel,
    optimizer: optax.GradientTransformation,
    inner_optimizer: optax.GradientTransformation | None = None,
    max_age: int = 1,
    members_per_step: int = 1,
    support_images: int = 0,
    bits: int = 32,
    loss: Loss = mean_squared_error,
    regularizer: Regularizer | None = None,
    member_loss: Loss = mean_squared_error,
    member_rows: Rows | None = None,
    shard: Shard = unsharded,
) -> Callable[[OuterState, Float[Array, "b H W C"], Float[Array, "b d"], PRNGKeyArray], tuple[OuterState, dict[str, Array]]]:
    """Build the outer step: a pure function, not yet jitted.

    One step draws K members without replacement, averages the outer loss over them, moves the distilled set by one
    optimizer step, and trains (or resets) the same members on the set as it was before. K = 1 is the published algorithm.
    A kernel without members has one loss and nothing to train.

    Args:
        kernel: kernel of the outer loss, such as `ssdd_jax.kernels.feature.feature_kernel(learner)`.
        optimizer: moves the distilled set.
        inner_optimizer: trains the members; a kernel without them needs none.
        max_age: number of updates after which a member is replaced.
        members_per_step: number of members K.
        support_images: how many distilled images take part in a step, drawn afresh each time; 0 takes all.
        bits: what the loss and the members see of the set's numbers, see `ssdd_jax.core.quantise.quantise`; the state keeps floats.
        loss: see `outer_loss`.
        regularizer: see `outer_loss`.
        member_loss: what members are trained on.
        member_rows: the rows that they are trained on, drawn afresh each time; by default all views of the images that take part.
        shard: how real rows, support rows and members lie on devices, see `Shard`.

    Returns:
        step(state, images "b H W C", reprs "b d", key) -> (state, metrics); metrics are scalars: loss, grad_norm, and for the members
        member_loss, member_norm (norm of the trained ones' variables, finite if these are) and mean_age.

    Example:
        >>> step = jax.jit(make_outer_step(kernel=feature_kernel(learner), optimizer=optax.adam(1e-2),
        ...     inner_optimizer=optax.sgd(0.1, 0.9), max_age=100))  # doctest: +SKIP
        >>> state, metrics = step(state, images, reprs, jax.random.key(0))  # doctest: +SKIP
    """
    learner = kernel.learner
    inner_optimizer = inner_optimizer if learner is None else _required(inner_optimizer)
    settings = dict(kernel=kernel, loss=loss, regularizer=regularizer)

    def step(state: OuterState, images, reprs, key):
        member_key, reset_key, support_key = jax.random.split(key, 3)
        images, reprs = shard("data", (images, reprs))
        read = set_reader(support_key, state.distilled, support_images, bits)
        chosen, members = None, None
        if state.pool is not None:
            chosen = jax.random.choice(member_key, state.pool.age.shape[0], (members_per_step,), replace=False)
            members = shard("pool", pools.take(state.pool, chosen))

        def loss_fn(distilled):
            one = lambda variables: outer_loss(read(distilled), variables, images, reprs, **settings)
            if members is None:
                return one(None)
            losses, increases = over_leading_axis(one)(members.variables)
            return jnp.mean(losses), jnp.sum(increases, dtype=jnp.int32)

        (value, increases), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.distilled)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.distilled)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        pool = state.pool
        if pool is not None:
            # A key of its own, so that the other draws are the same whatever the members are trained on.
            taken = read(state.distilled)
            found = support_rows(taken) if member_rows is None else member_rows(jax.random.fold_in(key, 3), taken)
            rows, targets = replicate_then_shard(shard, jax.lax.stop_gradient(found))
            of_members = dict(learner=learner, optimizer=inner_optimizer, max_age=max_age, loss=member_loss)
            update_member = lambda k, member: pools.train_or_reset(k, member, rows, targets, **of_members)
            members, losses = over_leading_axis(update_member)(jax.random.split(reset_key, members_per_step), members)
            pool = pools.put(pool, chosen, members)
            metrics |= {
                "member_loss": jnp.mean(losses),
                "member_norm": optax.tree.norm(members.variables),
                "mean_age": jnp.mean(pool.age.astype(jnp.float32)),
            }
        new_state = OuterState(
            step=state.step + 1,
            distilled=optax.apply_updates(state.distilled, updates),
            opt_state=opt_state,
            pool=pool,
            ridge_increases=state.ridge_increases + increases,
        )
        return new_state, metrics

    return step


def warm_up_ages(key: PRNGKeyArray, pool_size: int, max_age: int) -> Int[Array, " L"]:
    """Draw how many updates each member has had when distillation starts: U{1, ..., max_age - 1} (KRR-ST)."""
    return jax.random.randint(key, (pool_size,), 1, max(max_age, 2))


def staggered_ages(pool_size: int, max_age: int) -> Int[Array, " L"]:
    """Return 0, 1/L, 2/L, ... of `max_age`, rounded down: how many updates each untrained member counts at the start (FRePo)."""
    return max_age * jnp.arange(pool_size, dtype=jnp.int32) // pool_size


def without_pool(state: OuterState) -> OuterState:
    """Return the part of a state that is checked to be finite.

    The members that a step trains are finite if their `member_norm` is; the pool itself is changed in place, and reading it would copy it.
    """
    return replace(state, pool=None)


def make_warm_up_step(
    *, kernel: Kernel, inner_optimizer: optax.GradientTransformation, support_images: int = 0, bits: int = 32, shard: Shard = unsharded
) -> Callable[[OuterState, Int[Array, ""], Int[Array, " L"], PRNGKeyArray], tuple[OuterState, dict[str, Array]]]:
    """Build step(state, member, ages, key) -> (state, metrics), which trains one member on the set unless it has reached its age.

    `support_images`, `bits`, `shard` and the key mean what they mean in the outer step: which images take part, how, and where they lie.
    The metrics are loss and member_norm, see `make_outer_step`.
    """

    def step(state: OuterState, member, ages, key):
        read = set_reader(key, state.distilled, support_images, bits)
        index = jnp.asarray(member)[None]
        old = jax.tree.map(lambda leaf: leaf[0], pools.take(state.pool, index))
        rows, targets = replicate_then_shard(shard, support_rows(read(state.distilled)))
        new, loss = pools.train_member(old, rows, targets, kernel.learner, inner_optimizer)
        kept = jax.tree.map(lambda n, o: jnp.where(old.age < ages[member], n, o)[None], new, old)
        metrics = {"loss": loss, "member_norm": optax.tree.norm(kept.variables)}
        return replace(state, pool=pools.put(state.pool, index, kept)), metrics

    return step
