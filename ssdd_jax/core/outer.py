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
from ssdd_jax.core.batching import in_parts
from ssdd_jax.core.distilled import DistilledSet, expand, num_images, take_images
from ssdd_jax.core.krr import RidgeScale, append_bias, ridge_predict
from ssdd_jax.core.pool import Learner, MemberState, over_leading_axis

Place = Callable[[str, Any], Any]
"""(axis, tree) -> the tree, its leaves' leading axis spread over devices: "data" for rows, "pool" for members; or "whole" on every device.

Changes no value.
"""


def anywhere(axis: str, tree: Any) -> Any:
    """Leave a tree where it is: the placement on one device."""
    return tree


def spread(place: Place, rows: Any) -> Any:
    """Spread support rows that every device expands by itself: turning views of spread images would send them to and fro."""
    return place("data", place("whole", rows))


@struct.dataclass
class OuterState:
    """The whole state of a distillation: what a checkpoint holds.

    Attributes:
        step: number of outer steps done.
        distilled: the set.
        opt_state: of the outer optimizer.
        pool: L members, stacked.
        ridge_raises: how many times a singular kernel's ridge was raised tenfold so far, see `solve_regularized`.
    """

    step: Int[Array, ""]
    distilled: DistilledSet
    opt_state: Any
    pool: MemberState
    ridge_raises: Int[Array, ""]


def support_rows(distilled: DistilledSet) -> tuple[Float[Array, "n H W C"], Float[Array, "n d"]]:
    """Return all views of the set as one batch, n = A m."""
    images, reprs = expand(distilled)
    return images.reshape(-1, *images.shape[2:]), reprs.reshape(-1, reprs.shape[-1])


def outer_loss(
    distilled: DistilledSet,
    variables: Any,
    images: Float[Array, "b H W C"],
    reprs: Float[Array, "b d"],
    *,
    learner: Learner,
    ridge: float = 1e-6,
    ridge_scale: RidgeScale = "trace",
    rows_at_once: int = 0,
    remat: bool = False,
) -> Float[Array, ""]:
    """Return the regression's mean squared error on real images (KRR-ST, with every view among the support rows).

    P = F_t F_s^T (F_s F_s^T + lambda I)^-1 Y_s and loss = mean((P - T(x_t))^2), with F = [f(x), 1] the penultimate
    features of one inner model in evaluation mode. The gradient reaches the distilled set through F_s and Y_s.

    Args:
        distilled: what is differentiated.
        variables: of one inner model.
        images: "b H W C" real images.
        reprs: "b d" the teacher's representations of them.
        learner: of the inner model.
        ridge: see `krr_predict`.
        ridge_scale: see `krr_predict`.
        rows_at_once: see `in_parts`.
        remat: see `in_parts`.
    """
    settings = {"learner": learner, "ridge": ridge, "ridge_scale": ridge_scale, "rows_at_once": rows_at_once, "remat": remat}
    return _outer_loss(distilled, variables, images, reprs, **settings)[0]


def _outer_loss(
    distilled, variables, images, reprs, *, learner, ridge, ridge_scale, rows_at_once, remat, place=anywhere
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Return `outer_loss`, and how many times the ridge was raised."""
    support_images, support_reprs = support_rows(distilled)
    # Each part is spread, see `spread`.
    features = lambda rows: learner.features(variables, place("data", rows))
    f_support = append_bias(in_parts(features, place("whole", support_images), rows_at_once, remat=remat))
    f_target = jax.lax.stop_gradient(append_bias(in_parts(features, images, rows_at_once)))
    predicted, raises = ridge_predict(f_support, support_reprs, f_target, ridge=ridge, ridge_scale=ridge_scale)
    return jnp.mean((predicted - reprs) ** 2), raises


def init_outer(
    key: PRNGKeyArray,
    distilled: DistilledSet,
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    inner_optimizer: optax.GradientTransformation,
    pool_size: int,
) -> OuterState:
    """Return the state before the first step, with an untrained pool (see `warm_up`)."""
    members = jax.vmap(lambda k: pools.init_member(k, learner, inner_optimizer))(jax.random.split(key, pool_size))
    # A buffer each, so that the state can be donated.
    step, ridge_raises = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return OuterState(step=step, distilled=distilled, opt_state=optimizer.init(distilled), pool=members, ridge_raises=ridge_raises)


def image_sampler(key: PRNGKeyArray, total: int, count: int) -> Callable[[DistilledSet], DistilledSet]:
    """Return the function that takes `count` of a set's `total` images, drawn with the key; 0 takes all of them."""
    if not 0 < count < total:
        return lambda distilled: distilled
    index = jax.random.permutation(key, total)[:count]
    return lambda distilled: take_images(distilled, index)


def make_outer_step(
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    inner_optimizer: optax.GradientTransformation,
    max_age: int,
    members_per_step: int = 1,
    support_images: int = 0,
    ridge: float = 1e-6,
    ridge_scale: RidgeScale = "trace",
    rows_at_once: int = 0,
    remat: bool = False,
    place: Place = anywhere,
) -> Callable[[OuterState, Float[Array, "b H W C"], Float[Array, "b d"], PRNGKeyArray], tuple[OuterState, dict[str, Array]]]:
    """Build the outer step: a pure function, not yet jitted.

    One step draws K members without replacement, averages the outer loss over them, moves the distilled set by one
    optimizer step, and trains (or resets) the same members on the set as it was. K = 1 is the published algorithm.

    Args:
        learner: of the pool.
        optimizer: moves the distilled set.
        inner_optimizer: trains the members.
        max_age: updates after which a member is replaced.
        members_per_step: K.
        support_images: how many distilled images take part in a step, drawn afresh each time; 0 takes all.
        ridge: see `krr_predict`.
        ridge_scale: see `krr_predict`.
        rows_at_once: how many real and how many support images pass through a member together, see `in_parts`; 0 takes all.
        remat: compute activations again where their gradient is needed instead of keeping them.
        place: how real rows, support rows and members are spread over devices, see `Place`.

    Returns:
        step(state, images "b H W C", reprs "b d", key) -> (state, metrics); metrics are scalars: loss, member_loss,
        grad_norm, member_norm (of the trained members' variables: finite if they are), mean_age.

    Example:
        >>> step = jax.jit(make_outer_step(learner=learner, optimizer=optax.adam(1e-2),
        ...     inner_optimizer=optax.sgd(0.1, 0.9), max_age=100))  # doctest: +SKIP
        >>> state, metrics = step(state, images, reprs, jax.random.key(0))  # doctest: +SKIP
    """
    settings = {"learner": learner, "ridge": ridge, "ridge_scale": ridge_scale, "rows_at_once": rows_at_once, "remat": remat}

    def step(state: OuterState, images, reprs, key):
        member_key, reset_key, support_key = jax.random.split(key, 3)
        pool_size = state.pool.age.shape[0]
        chosen = jax.random.choice(member_key, pool_size, (members_per_step,), replace=False)
        members = place("pool", pools.take(state.pool, chosen))
        images, reprs = place("data", (images, reprs))
        select = image_sampler(support_key, num_images(state.distilled), support_images)

        def loss_fn(distilled):
            one = lambda variables: _outer_loss(select(distilled), variables, images, reprs, **settings, place=place)
            losses, raises = over_leading_axis(one)(members.variables)
            return jnp.mean(losses), jnp.sum(raises)

        (loss, raises), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.distilled)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.distilled)
        rows, targets = spread(place, jax.lax.stop_gradient(support_rows(select(state.distilled))))
        update_member = lambda k, member: pools.train_or_reset(
            k, member, rows, targets, learner=learner, optimizer=inner_optimizer, max_age=max_age
        )
        members, member_loss = over_leading_axis(update_member)(jax.random.split(reset_key, members_per_step), members)
        new_state = OuterState(
            step=state.step + 1,
            distilled=optax.apply_updates(state.distilled, updates),
            opt_state=opt_state,
            pool=pools.put(state.pool, chosen, members),
            ridge_raises=state.ridge_raises + raises,
        )
        metrics = {
            "loss": loss,
            "member_loss": jnp.mean(member_loss),
            "grad_norm": optax.tree.norm(grads),
            "member_norm": optax.tree.norm(members.variables),
            "mean_age": jnp.mean(new_state.pool.age.astype(jnp.float32)),
        }
        return new_state, metrics

    return step


def warm_up_ages(key: PRNGKeyArray, pool_size: int, max_age: int) -> Int[Array, " L"]:
    """Draw how many updates each member has behind it when distillation starts: U{1, ..., max_age - 1} (KRR-ST)."""
    return jax.random.randint(key, (pool_size,), 1, max(max_age, 2))


def make_warm_up_step(
    *, learner: Learner, inner_optimizer: optax.GradientTransformation, support_images: int = 0, place: Place = anywhere
) -> Callable[[OuterState, Int[Array, ""], Int[Array, " L"], PRNGKeyArray], tuple[OuterState, dict[str, Array]]]:
    """Build step(state, member, ages, key) -> (state, metrics), which trains one member on the set unless it has reached its age.

    `support_images`, `place` and the key are those of the outer step: the images that take part, and where. The metrics are loss and
    member_norm, see `make_outer_step`.
    """

    def step(state: OuterState, member, ages, key):
        select = image_sampler(key, num_images(state.distilled), support_images)
        index = jnp.asarray(member)[None]
        old = jax.tree.map(lambda leaf: leaf[0], pools.take(state.pool, index))
        rows, targets = spread(place, support_rows(select(state.distilled)))
        new, loss = pools.train_member(old, rows, targets, learner, inner_optimizer)
        kept = jax.tree.map(lambda n, o: jnp.where(old.age < ages[member], n, o)[None], new, old)
        metrics = {"loss": loss, "member_norm": optax.tree.norm(kept.variables)}
        return replace(state, pool=pools.put(state.pool, index, kept)), metrics

    return step
