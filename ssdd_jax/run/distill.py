"""The distillation stage: one method, a group of seeds, from real images to files."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.distilled import DistilledSet, Factors, Layout, compress, init_distilled, stored_coefficients
from ssdd_jax.core.outer import init_outer, make_outer_step, make_warm_up_step, warm_up_ages
from ssdd_jax.core.pool import over_leading_axis
from ssdd_jax.core.views import VIEWS, apply_views
from ssdd_jax.io.artifacts import read_manifest, save_distilled
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.run.build import Plan, num_steps, outer_optimizer, sgd
from ssdd_jax.run.context import Context
from ssdd_jax.run.loop import Loop, resumable, stack, unstack
from ssdd_jax.run.spec import MethodSpec
from ssdd_jax.run.teacher import in_batches


def initial_set(context: Context, name: str, plan: Plan, seed: int) -> DistilledSet:
    """Return the start of a method: m real training images and the teacher's representations of their views."""
    data, method = context.data, context.spec.methods[name]
    order = jax.random.permutation(step_key(seed, Stream.DISTILLED_INIT), len(data.train_images))
    images = data.normalize(context.device_images[order[: plan.num_images]])
    represent = jax.jit(lambda batch: context.teacher.represent(batch))
    view_reprs = np.stack([in_batches(represent, view) for view in apply_views(images, plan.layout.views)])
    scale = method.factor_scale
    return init_distilled(
        images,
        jnp.asarray(view_reprs),
        plan.layout,
        image_pca=context.pca(plan.layout, method.image_bases, name),
        repr_pca=context.pca(None, method.repr_bases, name),
        factor_scale=scale if scale == "balanced" else float(scale),
    )


def make_step(context: Context, method: MethodSpec, start: int):
    """Build the outer step on data: (state, step number, seed, images "n H W C" uint8, reprs "R n d") -> (state, metrics)."""
    spec, data = context.spec, context.data
    outer_step = make_outer_step(
        learner=context.learner,
        optimizer=outer_optimizer(spec, method, start),
        inner_optimizer=sgd(spec.pool),
        max_age=spec.pool.max_age,
        members_per_step=spec.pool.members_per_step,
        support_images=method.support_images,
        ridge=spec.outer.ridge,
        ridge_scale=spec.outer.ridge_scale,  # pyright: ignore[reportArgumentType]
    )
    real_views = spec.outer.real_views

    def step(state, step_number, seed, images, reprs):
        rows_key, view_key, outer_key = jax.random.split(step_key(seed, Stream.OUTER_STEP, step_number), 3)
        rows = jax.random.randint(rows_key, (spec.outer.batch_size,), 0, len(images))
        view = jax.random.randint(view_key, rows.shape, 0, len(real_views))
        batch = data.normalize(images[rows])
        batch = jnp.stack([VIEWS[name](batch) for name in real_views])[view, jnp.arange(len(rows))]
        return outer_step(state, batch, reprs[view, rows], outer_key)

    return step


def approximate(sets: Any, layout: Layout, method: MethodSpec, seeds: jax.Array) -> tuple[Any, jax.Array | None]:
    """Fit the approximation networks of a stack of sets and compress it; return it with R^2 "S A", or None without networks."""
    free = [view for view, kind in zip(layout.views, layout.free().target_kinds, strict=True) if kind == "stored"]
    wanted = jnp.array([free.index(v) for v, kind in zip(layout.views, layout.target_kinds, strict=True) if kind == "network"], int)
    if not len(wanted):
        return sets, None

    def one(distilled: DistilledSet, seed):
        coefficients = stored_coefficients(distilled.reprs)
        networks, r2 = fit_networks(
            step_key(seed, Stream.NETWORKS),
            coefficients[0],
            coefficients[wanted],
            hidden=method.hidden,
            bases=distilled.reprs.bases if isinstance(distilled.reprs, Factors) else None,
            num_steps=method.network_steps,
        )
        return compress(distilled, layout, networks), r2

    return jax.jit(over_leading_axis(one))(sets, seeds)


def distill(context: Context, name: str, seeds: Sequence[int]) -> None:
    """Distill a method for a group of seeds and save the sets, unless sets of the same settings are there."""
    identity = context.distilled_digest(name)
    manifests = [read_manifest(context.distilled_folder(name, seed)) for seed in seeds]
    if all(manifest is not None and manifest.get("digest") == identity for manifest in manifests):
        return
    spec, method, plan = context.spec, context.spec.methods[name], context.plan(name)
    started = time.monotonic()
    seed_array = jnp.asarray(seeds)
    sets = stack([initial_set(context, name, plan, seed) for seed in seeds])
    total = num_steps(spec, method)
    joint = round(method.joint * total) if plan.layout.count("network") else 0
    label = "_".join(map(str, seeds))
    folder = context.checkpoints / f"{name}-{identity}-seeds_{label}"
    pool = None

    def optimise(sets: Any, phase: str, start: int, stop: int) -> Any:
        nonlocal pool
        optimizer, inner_optimizer = outer_optimizer(spec, method, start), sgd(spec.pool)
        fresh = jax.vmap(
            lambda seed, distilled: init_outer(
                step_key(seed, Stream.POOL_INIT),
                distilled,
                learner=context.learner,
                optimizer=optimizer,
                inner_optimizer=inner_optimizer,
                pool_size=spec.pool.size,
            )
        )
        state = jax.jit(fresh)(seed_array, sets)
        checkpoints, done, state = resumable(folder / phase, state if pool is None else replace(state, pool=pool))
        with checkpoints:
            if done == 0 and pool is None:
                state = warm_up(context, state, seed_array, name)
            loop = Loop(make_step(context, method, start), (0, None, None), spec.steps_per_dispatch)
            state = loop.run(
                state,
                stop,
                (seed_array, context.device_images, context.device_bank),
                display=context.display,
                name=f"distill/{name}/seeds_{label}",
                start=max(start, done),
                metrics=context.metrics,
                log_every=spec.log_every,
                checkpoints=checkpoints,
                checkpoint_every=spec.checkpoint_every,
            )
        pool = state.pool
        return state.distilled

    if total > joint:
        sets = optimise(sets, "free", 0, total - joint)
    sets, r2 = approximate(sets, plan.layout, method, seed_array)
    if joint:
        sets = optimise(sets, "joint", total - joint, total)
    sets = jax.block_until_ready(sets)
    seconds = (time.monotonic() - started) / len(seeds)
    network_views = [view for view, kind in zip(plan.layout.views, plan.layout.target_kinds, strict=True) if kind == "network"]
    for i, (seed, distilled) in enumerate(zip(seeds, unstack(sets), strict=True)):
        save_distilled(
            context.distilled_folder(name, seed),
            distilled,
            method=name,
            seed=seed,
            steps=total,
            seconds=round(seconds, 1),
            approximation=None if r2 is None else dict(zip(network_views, map(float, r2[i]), strict=True)),
            dataset=context.data.name,
            normalization={"mean": context.data.mean.tolist(), "std": context.data.std.tolist()},
            teacher={"centre": context.teacher.centre.tolist(), "scale": context.teacher.scale},
            digest=identity,
        )


def warm_up(context: Context, state: Any, seeds: jax.Array, name: str) -> Any:
    """Give every member of every seed's pool its random age, trained on the initial set."""
    pool = context.spec.pool
    draw = jax.vmap(lambda seed: warm_up_ages(step_key(seed, Stream.POOL_WARM_UP), pool.size, pool.max_age))
    ages = draw(seeds)
    step = make_warm_up_step(learner=context.learner, inner_optimizer=sgd(pool))
    step = jax.jit(over_leading_axis(step, (0, None, 0)), donate_argnums=0)
    updates = [int(most) for most in np.asarray(ages).max(0)]
    done = 0
    with context.display.task(f"warm up {name}", sum(updates)) as task:
        for member, count in enumerate(updates):
            for _ in range(count):
                state = step(state, jnp.asarray(member), ages)
                done += 1
                task.advance(done)
    return state
