"""FRePo (Zhou et al., 2022): the features of a pool of networks predict labels from images and labels, both of which move."""

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.batching import MIN_CHUNK
from ssdd_jax.core.distilled import DistilledSet, Layout, expand, num_images
from ssdd_jax.core.krr import centred_labels
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.core.outer import OuterState, image_sampler, init_outer, make_outer_step, staggered_ages, without_pool
from ssdd_jax.core.pool import half_squared_error
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.errors import InputError
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.methods.kernel import ridge_warnings
from ssdd_jax.methods.labels import balanced_start
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.network import own_learner
from ssdd_jax.methods.plan import Plan, Sizes, fill_classes
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import FrepoSpec
from ssdd_jax.settings.spec import RunSpec


def label_margin(labels: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return mean(-min(Y_(1) - Y_(2), 1/k)), Y_(1) and Y_(2) being a row's two largest numbers.

    It keeps the classes of learned labels apart: where they are so by more than 1/k, its gradient is 0.
    """
    first, second = jnp.moveaxis(jax.lax.top_k(labels, 2)[0], -1, 0)
    return -jnp.mean(jnp.minimum(first - second, 1 / labels.shape[-1]))


def set_margin(distilled: DistilledSet) -> Float[Array, ""]:
    """Return the margin of a set's labels; all views of an image share its label."""
    return label_margin(expand(distilled)[1][0])


def make_optimizer(spec: FrepoSpec, run: RunSpec) -> optax.GradientTransformation:
    """Return LAMB on images and labels, two leaves with a trust ratio each, at a cosine from the rate to `final_rate` of it."""
    rate = optax.cosine_decay_schedule(spec.learning_rate, max(num_steps(run, spec), 1), spec.final_rate)
    return optax.lamb(rate, run.outer.b1, run.outer.b2)


def step_settings(
    spec: FrepoSpec, run: RunSpec, learner: Learner, *, chunk_size: int = 0, remat: bool = False, shard: Shard = unsharded
) -> dict[str, Any]:
    """Return the arguments of `make_outer_step`: the one place where settings become a step; `learner` has an output per class."""

    def member_rows(key: PRNGKeyArray, distilled: DistilledSet) -> tuple[Array, Array]:
        """Return images as they are and their labels."""
        views, labels = expand(image_sampler(key, num_images(distilled), spec.member_images)(distilled))
        return views[0], labels[0]

    ridge = dict(ridge=spec.ridge, ridge_scale=spec.ridge_scale)
    return dict(
        kernel=feature_kernel(learner, **ridge, bias=False, chunk_size=chunk_size, remat=remat, shard=shard),
        optimizer=make_optimizer(spec, run),
        inner_optimizer=optax.adam(spec.member_learning_rate),
        max_age=spec.max_age,
        loss=half_squared_error,
        regularizer=set_margin,
        member_loss=half_squared_error,
        member_rows=member_rows,
        shard=shard,
    )


def init_state(key: PRNGKeyArray, spec: FrepoSpec, distilled: DistilledSet, settings: dict[str, Any]) -> OuterState:
    """Return the state before the first step of some `step_settings`, with an untrained pool of staggered ages."""
    kept = {name: settings[name] for name in ("kernel", "optimizer", "inner_optimizer")}
    return init_outer(key, distilled, **kept, pool_size=spec.pool_size, ages=staggered_ages(spec.pool_size, spec.max_age))


def plan(name: str, spec: FrepoSpec, sizes: Sizes) -> Plan:
    """Choose the number of images that the budget holds, equally many of each class; a label takes one number per class.

    Raises:
        InputError: the budget does not hold one image of each class, there is but one class, or a setting does not fit.
    """
    if sizes.num_classes < 2:
        raise InputError(
            f"config.methods.{name}: the data have {sizes.num_classes} class, expected two or more; leave it out of config.only"
        )
    own_learner(name, spec.net, sizes.image_shape, sizes.num_classes)
    views, targets = (("identity", "hflip"), ("stored", "shared")) if spec.flip else (("identity",), ("stored",))
    layout = Layout(sizes.image_shape, sizes.image_shape, views, targets, target_kind="labels")
    return fill_classes(name, sizes, layout, spec.images, label_width=sizes.num_classes)


def start(spec: FrepoSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return real training images, equally many of each class, and their labels, (onehot - 1/k) / sqrt(k/10) of k classes."""
    distilled = balanced_start(inputs, plan, seed, "centred")
    return replace(distilled, reprs=jax.tree.map(lambda labels: labels / sqrt(inputs.num_classes / 10), distilled.reprs))


def phases(spec: FrepoSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the steps, if there are any."""
    return (_steps(spec, inputs),) if num_steps(inputs.run, spec) else ()


def _steps(spec: FrepoSpec, inputs: Inputs) -> Phase:
    run, real, where = inputs.run, inputs.real, f"config.methods.{inputs.name}"
    learner = own_learner(inputs.name, spec.net, inputs.image_shape, inputs.num_classes, precision=run.outer.precision)
    in_memory = dict(chunk_size=inputs.chunk_size(learner), remat=run.memory.remat)
    settings = step_settings(spec, run, learner, **in_memory, shard=inputs.shard)
    outer_step = make_outer_step(**settings)

    def init(seed: Array, distilled: DistilledSet) -> OuterState:
        return init_state(step_key(seed, Stream.POOL_INIT), spec, distilled, settings)

    def step(state: OuterState, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[OuterState, dict[str, Array]]:
        images, targets = real.images(batch[0], number, seed), centred_labels(batch[1], inputs.num_classes)
        return outer_step(state, images, targets, real.outer_key(number, seed))

    def draw(number: Array, seed: Array) -> tuple[Array, Array]:
        rows = real.draw(number, seed)[0]
        return rows, rows

    def smaller() -> Iterator[tuple[str, Phase]]:
        """Yield the settings that take less memory, with the phase built from them."""
        less = replace(inputs, run=replace(run, memory=replace(run.memory, remat=True)), chunk_size=lambda learner: MIN_CHUNK)
        yield f"--config.memory.remat=True --config.memory.chunk_size={MIN_CHUNK}", _steps(spec, less)

    regression = f"the regression; lower {where}.learning_rate ({spec.learning_rate}) or raise {where}.ridge ({spec.ridge})"
    members = f"the training of the pool; lower {where}.member_learning_rate ({spec.member_learning_rate})"
    causes = dict(loss=regression, grad_norm=regression, member_loss=members, member_norm=members)
    return Phase(
        "steps",
        num_steps(run, spec),
        init,
        step,
        draw,
        ("images", "labels"),
        watch=without_pool,
        causes={**causes, "distilled": f"too large a step; lower {where}.learning_rate ({spec.learning_rate})"},
        smaller=smaller,
    )


def finish(spec: FrepoSpec, plan: Plan, inputs: Inputs, state: OuterState | DistilledSet) -> Finished:
    """Return the set, and how many times a ridge was increased."""
    distilled, increases = (state.distilled, int(state.ridge_increases)) if isinstance(state, OuterState) else (state, 0)
    facts = {"steps": num_steps(inputs.run, spec), "ridge_increases": increases}
    return Finished(distilled, facts, ridge_warnings(increases, f"config.methods.{inputs.name}.ridge ({spec.ridge})"))


METHOD = Method(
    spec=FrepoSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=("outer",),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
