"""Kernel inducing points (KIP) and label solve (Nguyen et al., 2021): a kernel regression of labels moves images, or labels."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ssdd_jax.core.batching import batches_per_epoch
from ssdd_jax.core.distilled import DistilledSet, Layout, expand
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import centred_labels, solve_labels
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.core.outer import OuterState, init_outer, make_outer_step, support_rows
from ssdd_jax.core.pool import mean_squared_error
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.errors import InputError
from ssdd_jax.methods.kernel import check_kernel, check_rows, has_members, kernel_settings, ridge_warnings
from ssdd_jax.methods.labels import balanced_start
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.plan import Plan, Sizes, fill_classes
from ssdd_jax.registry import KERNELS
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import KipSpec


def kip_loss(predicted: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, ""]:
    """Return 1/2 of the mean squared error over images and classes."""
    return mean_squared_error(predicted, targets) / 2


def make_kernel(spec: KipSpec, *, shard: Shard = unsharded) -> Kernel:
    """Return the kernel that the settings name. Where labels are not learned, no gradient reaches them, so that no step moves them."""
    settings = dict(ridge=spec.ridge, ridge_scale=spec.ridge_scale, shard=shard)
    kernel = KERNELS[spec.kernel](None, **settings, **kernel_settings(spec))
    fixed = lambda variables, images, labels, points: kernel.predict(variables, images, jax.lax.stop_gradient(labels), points)
    return kernel if spec.learn_labels else kernel._replace(predict=fixed)


def make_optimizer(spec: KipSpec, b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Return Adam at the settings' constant rate."""
    return optax.adam(spec.learning_rate, b1, b2)


def make_step(spec: KipSpec, *, shard: Shard = unsharded, **adam: float) -> Any:
    """Return the outer step (state, images "b H W C", centred labels "b k", key) -> (state, metrics); `adam` has its b1 and b2."""
    kernel, optimizer = make_kernel(spec, shard=shard), make_optimizer(spec, **adam)
    return make_outer_step(kernel=kernel, optimizer=optimizer, loss=kip_loss, shard=shard)


def plan(name: str, spec: KipSpec, sizes: Sizes) -> Plan:
    """Choose the number of images that the budget holds, equally many of each class.

    A class takes one number, a label that is learned or solved for one per class.

    Raises:
        InputError: the budget does not hold one image of each class, or a setting does not fit.
    """
    where = f"config.methods.{name}"
    if has_members(spec.kernel):
        without = ", ".join(kernel for kernel in KERNELS if not has_members(kernel))
        raise InputError(f"{where}.kernel is {spec.kernel!r}, which reads a pool of networks; expected one of {without}")
    check_kernel(where, spec)
    if spec.learn_labels and spec.label_solve:
        raise InputError(f"{where}.label_solve replaces the labels that {where}.learn_labels learns; set one of them to False")
    layout = Layout(sizes.image_shape, sizes.image_shape, target_kind="labels")
    learned = spec.learn_labels or spec.label_solve
    plan = fill_classes(name, sizes, layout, spec.images, label_width=sizes.num_classes if learned else 1)
    check_rows(where, spec, plan.num_images, sizes.image_shape)
    return plan


def start(spec: KipSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return real training images, equally many of each class, and their centred labels."""
    return balanced_start(inputs, plan, seed, "centred")


def phases(spec: KipSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the steps, if there are any."""
    run, real, steps = inputs.run, inputs.real, num_steps(inputs.run, spec)
    adam = dict(b1=run.outer.b1, b2=run.outer.b2)
    outer_step = make_step(spec, shard=inputs.shard, **adam)

    def init(seed: Array, distilled: DistilledSet) -> OuterState:
        optimizer = make_optimizer(spec, **adam)
        return init_outer(step_key(seed, Stream.POOL_INIT), distilled, kernel=make_kernel(spec), optimizer=optimizer)

    def step(state: OuterState, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[OuterState, dict[str, Array]]:
        images, targets = real.images(batch[0], number, seed), centred_labels(batch[1], inputs.num_classes)
        return outer_step(state, images, targets, real.outer_key(number, seed))

    def draw(number: Int[Array, ""], seed: Int[Array, ""]) -> tuple[Array, Array]:
        rows = real.draw(number, seed)[0]
        return rows, rows

    where = f"config.methods.{inputs.name}"
    regression = f"the regression; lower {where}.learning_rate ({spec.learning_rate}) or raise {where}.ridge ({spec.ridge})"
    causes = dict.fromkeys(("loss", "grad_norm", "distilled"), regression)
    return (Phase("images", steps, init, step, draw, ("images", "labels"), causes=causes),) if steps else ()


def finish(spec: KipSpec, plan: Plan, inputs: Inputs, state: OuterState | DistilledSet) -> Finished:
    """Return the set, with its labels solved for where that is asked for, and how many times a ridge was increased."""
    moved = isinstance(state, OuterState)
    distilled = state.distilled if moved else state
    increases = int(state.ridge_increases) if moved else 0
    if spec.label_solve:
        distilled, more = with_solved_labels(spec, inputs, distilled)
        increases += more
    ridges = f"config.methods.{inputs.name}.ridge ({spec.ridge}) or label_ridge ({spec.label_ridge})"
    # A class is one number, although the file has the centred label, one number per class, for whoever reads it.
    facts = {"steps": num_steps(inputs.run, spec), "ridge_increases": increases, "stored_scalars": plan.stored_scalars}
    return Finished(distilled, facts, ridge_warnings(increases, ridges))


def with_solved_labels(spec: KipSpec, inputs: Inputs, distilled: DistilledSet) -> tuple[DistilledSet, int]:
    """Return the set with the labels that predict those of all training images best, and how many times a ridge was increased."""
    kernel, (support, start) = make_kernel(spec), support_rows(distilled)
    predict = jax.jit(partial(kernel.predict, None, support, jnp.eye(len(support), dtype=support.dtype)))
    parts = np.array_split(np.arange(inputs.num_train), batches_per_epoch(inputs.num_train, inputs.run.outer.batch_size))
    found = [predict(inputs.images(rows)) for rows in parts]
    weights = jnp.concatenate([part for part, _ in found])
    targets = centred_labels(jnp.asarray(inputs.class_labels()), inputs.num_classes)
    solved, more = solve_labels(weights, targets, start, ridge=spec.label_ridge)
    # K_ss is the same in every part.
    return replace(distilled, reprs=replace(distilled.reprs, rows=solved[None])), int(found[0][1]) + int(more)


def krr_accuracy(spec: KipSpec, distilled: DistilledSet, images: Float[Array, "b H W C"], labels: Int[Array, " b"]) -> float:
    """Return the share of images for which the kernel regression on a set predicts the right class: the largest of its outputs.

    Args:
        spec: settings of the method; they name the kernel.
        distilled: the set.
        images: normalized images, none of which chose anything.
        labels: their classes.
    """
    views, targets = expand(distilled)
    predicted, _ = jax.jit(partial(make_kernel(spec).predict, None))(views[0], targets[0], images)
    return float(jnp.mean(jnp.argmax(predicted, -1) == labels))


METHOD = Method(
    spec=KipSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=("outer",),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
