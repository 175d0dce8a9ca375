"""KRR-ST (Lee et al., 2024) and its extension by Yu et al. (2025): kernel ridge regression in closed form moves the set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.bases import PCA
from ssdd_jax.core.batching import MIN_CHUNK
from ssdd_jax.core.distilled import DistilledSet, Layout, compress, finished_shapes, init_distilled
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.optimizers import continue_with_networks, num_steps, outer_optimizer, sgd
from ssdd_jax.core.outer import (
    Loss,
    OuterState,
    make_outer_step,
    make_warm_up_step,
    warm_up_ages,
    without_pool,
)
from ssdd_jax.core.pool import mean_squared_error
from ssdd_jax.core.quantise import BITS
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.core.turns import in_turn, init_in_turn, key_of_pool, on_pools
from ssdd_jax.errors import InputError
from ssdd_jax.methods.automatic import choose, first_choice, is_automatic
from ssdd_jax.methods.kernel import check_kernel, check_rows, kernel_settings, ridge_warnings
from ssdd_jax.methods.method import TEACHER, Finished, Inputs, Method, Phase
from ssdd_jax.methods.outer_loss import make_loss
from ssdd_jax.methods.plan import Plan, Sizes, fill_budget
from ssdd_jax.methods.selection import select_images
from ssdd_jax.methods.stores import factor_scale, make_stores
from ssdd_jax.registry import KERNELS
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import AUTO, AUTO_VIEWS, RegressionSpec
from ssdd_jax.settings.spec import RunSpec


@struct.dataclass
class State:
    """The outer loop's state, R^2 "A" of the approximation networks once they are fitted, and the set's mean over steps if it is kept."""

    outer: OuterState
    r2: Array | None
    mean: DistilledSet | None

    @property
    def distilled(self) -> DistilledSet:
        """Return the distilled set."""
        return self.outer.distilled


def watched(state: State) -> OuterState:
    """Return the part of a state that is checked to be finite."""
    return without_pool(state.outer)


def plan(name: str, spec: RegressionSpec, sizes: Sizes) -> Plan:
    """Choose the views' targets and the number of images that the budget holds.

    Raises:
        InputError: the budget does not hold the bases and one image, or a setting does not fit the data.
    """
    where, width = f"config.methods.{name}", sizes.repr_width
    if spec.bits not in (AUTO, *BITS):
        raise InputError(f"{where}.bits is {spec.bits}, expected one of {', '.join(map(str, BITS))}")
    if AUTO_VIEWS[0] in spec.views and (spec.views != AUTO_VIEWS or spec.view_targets != ("auto",) or spec.joint):
        raise InputError(
            f"{where}.views is {spec.views}, view_targets {spec.view_targets} and joint {spec.joint}; with views that are chosen, "
            "'auto' stands alone and so are the others: leave them, or name the views"
        )
    # What is not chosen yet is checked as the search for it begins.
    spec = first_choice(spec, sizes) if is_automatic(spec) else spec
    (h, w, c), side = sizes.image_shape, spec.base_size
    if side > min(h, w):
        raise InputError(f"{where}.base_size is {side}, expected at most {min(h, w)}, the images' side; 0 is the full size")
    base_shape = (side, side, c) if side else sizes.image_shape
    numbers = prod(base_shape)
    if spec.frequencies > numbers:
        raise InputError(f"{where}.frequencies is {spec.frequencies}, expected at most {numbers}, the numbers of a base image")
    if spec.image_bases > (most := spec.frequencies or numbers):
        what = "frequencies that are kept" if spec.frequencies else "numbers of a base image"
        raise InputError(f"{where}.image_bases is {spec.image_bases}, expected at most {most}, the {what}")
    if spec.repr_bases > width:
        raise InputError(f"{where}.repr_bases is {spec.repr_bases}, expected at most {width}, the width of the teacher's representation")
    factor_scale(where, spec)
    check_kernel(where, spec)
    layout = partial(Layout, sizes.image_shape, base_shape, spec.views)
    try:
        if spec.view_targets == ("auto",):
            if spec.views[:1] != ("identity",):
                raise ValueError(f"views {spec.views} with automatic targets: expected 'identity' first, from which shifts are measured")
            shared = [view for view in spec.views[1:] if sizes.shifts[view] <= spec.shared_below]
            targets = lambda costly: ("stored", *("shared" if view in shared else costly for view in spec.views[1:]))
            # Stored coefficients are exact, so networks must save something to be chosen.
            layouts = [layout(targets(costly)) for costly in ("stored", "network")]
        else:
            layouts = [layout(spec.view_targets)]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    unfitted = lambda width, count: PCA(jnp.zeros(width), jnp.zeros((count, width)), jnp.zeros(width))
    stores = make_stores(where, spec, partial(unfitted, numbers), partial(unfitted, width))
    shapes = lambda count, layout: finished_shapes(count, layout, width, **stores, hidden=spec.hidden)
    advice = f"lower image_bases ({spec.image_bases}) or repr_bases ({spec.repr_bases}), or raise config.num_pairs"
    plan = fill_budget(where, sizes, layouts, shapes, spec.images, advice, spec.bits)
    check_rows(where, spec, (spec.support_images or plan.num_images) * len(spec.views), sizes.image_shape)
    if spec.joint and not plan.layout.count("network"):
        unused = f"{where}.joint is {spec.joint}, but networks predict no view's targets"
        if spec.view_targets != ("auto",):
            raise InputError(f"{unused} in view_targets={spec.view_targets}; set it to 0, or a view to 'network'")
        return replace(plan, notes=(*plan.notes, f"{unused}, since others fit more images; it has no effect"))
    return plan


def start(spec: RegressionSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return m real training images and the teacher's representations of their views."""
    layout = plan.layout
    rows = select_images(spec.selection, seed, plan.num_images, inputs.num_train, inputs.train_reprs)
    view_reprs = inputs.view_reprs(rows, layout.views)
    stores = make_stores(f"config.methods.{inputs.name}", spec, partial(inputs.image_pca, layout.base_shape), inputs.repr_pca)
    return init_distilled(inputs.images(rows), jnp.asarray(view_reprs), layout, **stores)


def make_kernel(spec: RegressionSpec, run: RunSpec, learner: Any, *, chunk_size: int, shard: Shard = unsharded) -> Kernel:
    """Return the kernel of the outer loss that the settings name."""
    outer = run.outer
    settings = dict(ridge=outer.ridge, ridge_scale=outer.ridge_scale, chunk_size=chunk_size, remat=run.memory.remat, shard=shard)
    return KERNELS[spec.kernel](learner, **settings, **kernel_settings(spec))


def make_kernels(spec: RegressionSpec, inputs: Inputs) -> dict[str, Kernel]:
    """Return the kernel of every network of the pool, by label; one that has no members is the only one."""
    found = {
        label: make_kernel(spec, inputs.run, learner, chunk_size=inputs.chunk_size(learner), shard=inputs.shard)
        for label, learner in inputs.learners.items()
    }
    return {label: kernel for i, (label, kernel) in enumerate(found.items()) if kernel.learner is not None or not i}


def step_settings(
    spec: RegressionSpec, run: RunSpec, kernel: Kernel, loss: Loss = mean_squared_error, *, first: int = 0, shard: Shard = unsharded
) -> dict[str, Any]:
    """Return the arguments of `make_outer_step`: the one place where settings become a step; networks take part from step `first` on."""
    return dict(
        kernel=kernel,
        loss=loss,
        optimizer=outer_optimizer(run, spec, first),
        inner_optimizer=sgd(run.pool),
        max_age=run.pool.max_age,
        members_per_step=run.pool.members_per_step,
        support_images=spec.support_images,
        bits=bits_in_steps(spec),
        shard=shard,
    )


def bits_in_steps(spec: RegressionSpec) -> int:
    """Return what steps see of the set's numbers."""
    return spec.bits if spec.rounding == "trained" else 32


def phases(spec: RegressionSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return the warm-up of the pools, the free steps, and the steps in which approximation networks take part."""
    run, total, layout = inputs.run, num_steps(inputs.run, spec), plan.layout
    networks = layout.count("network") > 0
    joint = round(spec.joint * total) if networks else 0
    free = total - joint
    kernels = make_kernels(spec, inputs)
    warm = all(kernel.learner is not None for kernel in kernels.values())
    # A copy, since the state is donated.
    mean_of = lambda distilled: jax.tree.map(jnp.copy, distilled) if spec.averaged else None

    def begin(seed: Array, distilled: DistilledSet) -> State:
        """Return the state before the first step; without free steps the networks are fitted first."""
        r2 = None
        if networks and not free:
            distilled, r2 = fit(spec, plan, distilled, step_key(seed, Stream.NETWORKS))
        pooled = list(kernels.values()) if total else [Kernel(next(iter(kernels.values())).predict, None)]
        optimizers = dict(optimizer=outer_optimizer(run, spec), inner_optimizer=sgd(run.pool))
        outer = init_in_turn(step_key(seed, Stream.POOL_INIT), distilled, kernels=pooled, **optimizers, pool_size=run.pool.size)
        return State(outer, r2, mean_of(distilled))

    def join(seed: Array, state: State) -> State:
        """Fit the networks and drop what they replace; the outer loop goes on with what is kept."""
        distilled, r2 = fit(spec, plan, state.outer.distilled, step_key(seed, Stream.NETWORKS))
        opt_state = continue_with_networks(outer_optimizer(run, spec, free), state.outer.opt_state, distilled, plan.layout)
        return State(replace(state.outer, distilled=distilled, opt_state=opt_state), r2, mean_of(distilled))

    go_on = lambda seed, state: state
    if not total:
        return (Phase("joint", 0, begin, go_on, watch=watched, causes=_causes(spec, inputs)),) if networks else ()
    steps = partial(_steps, spec, plan, inputs, make_loss(spec.loss, inputs))
    found = [steps("free", free, go_on if warm else begin)] if free else []
    if networks:
        found.append(steps("joint", joint, join, free) if free else steps("joint", joint, go_on if warm else begin))
    if not warm:
        return tuple(found)
    seen = dict(support_images=spec.support_images, bits=bits_in_steps(spec), shard=inputs.shard)
    trains = on_pools([make_warm_up_step(kernel=kernel, inner_optimizer=sgd(run.pool), **seen) for kernel in kernels.values()])
    names = [f"warm_up_{label}" for label in kernels] if len(kernels) > 1 else ["warm_up"]
    warm_ups = [
        _warm_up(name, spec, inputs, i, train, go_on if i else begin) for i, (name, train) in enumerate(zip(names, trains, strict=True))
    ]
    # A warm-up takes less memory than the steps that follow: settings that make these fit make it fit too.
    return (*(phase._replace(smaller=found[0].smaller) for phase in warm_ups), *found)


def fit(spec: RegressionSpec, plan: Plan, distilled: DistilledSet, key: Array) -> tuple[DistilledSet, Array]:
    """Fit the approximation networks, drop what they replace, and return the set with R^2 "A"."""
    codes = distilled.reprs.codes
    free = [view for view, kind in zip(plan.layout.views, distilled.layout.view_targets, strict=True) if kind == "stored"]
    rows = jnp.array([free.index(view) for view in network_views(plan.layout)])
    settings = dict(hidden=spec.hidden, bases=distilled.reprs.bases, num_steps=spec.network_steps)
    networks, r2 = fit_networks(key, codes[0], codes[rows], **settings)
    return compress(distilled, plan.layout, networks), r2


def network_views(layout: Layout) -> list[str]:
    """Return the views whose targets networks predict."""
    return [view for view, kind in zip(layout.views, layout.view_targets, strict=True) if kind == "network"]


def _warm_up(name: str, spec: RegressionSpec, inputs: Inputs, index: int, train: Callable, init: Any) -> Phase:
    """Return the phase in which `train` gives every member of one of the pools its random age, trained on the initial set."""
    pool = inputs.run.pool
    key = lambda seed, number=0: key_of_pool(step_key(seed, Stream.POOL_WARM_UP, number), index)
    ages_of = lambda seed: warm_up_ages(key(seed), pool.size, pool.max_age)

    def step(state: State, number: Array, batch: Any, seed: Array, shared: Any) -> tuple[State, dict[str, Array]]:
        # One member after the other; a seed whose pool is done waits for the others. Ages are drawn with key 0, steps use keys from 1 on.
        ages = ages_of(seed)
        member = jnp.minimum(jnp.searchsorted(jnp.cumsum(ages), number, side="right"), pool.size - 1)
        outer, metrics = train(state.outer, member, ages, key(seed, number + 1))
        return replace(state, outer=outer), metrics

    length = lambda seeds: max(int(ages_of(seed).sum()) for seed in seeds)
    return Phase(name, length, init, step, preparatory=True, watch=watched, causes=_causes(spec, inputs))


def _steps(spec: RegressionSpec, plan: Plan, inputs: Inputs, loss: Loss, name: str, count: int, init: Any, first: int = 0) -> Phase:
    """Return a phase of outer steps; the schedule goes on from its step `first`."""
    real, shard = inputs.real, inputs.shard
    settings = dict(first=first, shard=shard)
    steps = [make_outer_step(**step_settings(spec, inputs.run, kernel, loss, **settings)) for kernel in make_kernels(spec, inputs).values()]
    advance = on_batches(steps, real, inputs.represent_in_step)
    # Sets with and without networks have no mean.
    total = num_steps(inputs.run, spec)
    unaveraged = max(total - round(spec.averaged * total), first)

    def step(state: State, number: Array, batch: Any, seed: Array, variables: Any) -> tuple[State, dict[str, Array]]:
        outer, metrics = advance(state.outer, number, batch, seed, variables)
        mean = state.mean
        if mean is not None:
            share = 1 / jnp.maximum(outer.step - unaveraged, 1).astype(jnp.float32)
            mean = jax.tree.map(lambda old, new: old + share * (new - old), mean, outer.distilled)
        return replace(state, outer=outer, mean=mean), metrics

    def smaller() -> Iterator[tuple[str, Phase]]:
        """Yield settings that take less and less memory, nearest to the present ones first, each with the phase built from them."""
        memory = replace(inputs.run.memory, remat=True, chunk_size=MIN_CHUNK)
        less = replace(inputs, run=replace(inputs.run, memory=memory), chunk_size=lambda learner: MIN_CHUNK)
        flags = f"--config.memory.remat=True --config.memory.chunk_size={MIN_CHUNK}"
        images = spec.support_images or plan.num_images
        while images:
            fewer = f" --config.methods.{inputs.name}.support_images={images}" if images != spec.support_images else ""
            yield flags + fewer, _steps(replace(spec, support_images=images), plan, less, loss, name, count, init, first)
            images //= 2

    return Phase(
        name,
        count,
        init,
        step,
        draw=real.draw,
        tables=("images", "targets") if real.names else ("images",),
        shared=(lambda: None) if real.names else inputs.teacher_variables,
        first=first,
        watch=watched,
        causes=_causes(spec, inputs),
        smaller=smaller,
    )


def on_batches(outer_steps: Sequence[Any], real: Any, represent: Any) -> Any:
    """Return the outer step on a drawn batch: (state, step number, batch, seed, teacher's variables if needed) -> (state, metrics).

    There is an outer step for each of the pools, which take turns. A batch has images and, unless they are augmented afresh in every
    step, the teacher's representations.
    """
    outer_step = in_turn(outer_steps)

    def step(state, step_number, batch, seed, variables):
        images = real.images(batch[0], step_number, seed)
        reprs = batch[1] if real.names else represent(variables, images)
        return outer_step(step_number, state, images, reprs, real.outer_key(step_number, seed))

    return step


def _causes(spec: RegressionSpec, inputs: Inputs) -> dict[str, str]:
    """Return the likely cause and the remedy for each number that may go bad."""
    run = inputs.run
    rate = f"config.methods.{inputs.name}.learning_rate ({spec.learning_rate})"
    regression = f"the regression; lower {rate} or raise config.outer.ridge ({run.outer.ridge})"
    members = f"the training of the pool; lower config.pool.learning_rate ({run.pool.learning_rate})"
    return {
        "init": f"the fit of the approximation networks; lower config.methods.{inputs.name}.hidden",
        "loss": regression,
        "grad_norm": regression,
        "member_loss": members,
        "member_norm": members,
        "distilled": f"too large a step; lower {rate}",
    }


def finish(spec: RegressionSpec, plan: Plan, inputs: Inputs, state: State | DistilledSet) -> Finished:
    """Return the set, with R^2 of its networks by view and how many times a ridge was increased; saving it rounds it to its bits."""
    facts = {"bits": spec.bits}
    if isinstance(state, DistilledSet):
        return Finished(state, {**facts, "steps": 0, "ridge_increases": 0, "approximation": None})
    increases = int(state.outer.ridge_increases)
    r2 = None if state.r2 is None else dict(zip(network_views(plan.layout), map(float, state.r2), strict=True))
    facts |= {"steps": num_steps(inputs.run, spec), "ridge_increases": increases, "approximation": r2}
    warnings = ridge_warnings(increases, f"config.outer.ridge ({inputs.run.outer.ridge})")
    return Finished(state.outer.distilled if state.mean is None else state.mean, facts, warnings)


METHOD = Method(
    spec=RegressionSpec,
    version=2,
    needs=frozenset({TEACHER}),
    sections=("student", "pool", "outer"),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
    is_automatic=is_automatic,
    choose=choose,
    choice_version=2,
)
