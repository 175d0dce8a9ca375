"""The distillation stage: from real images to distilled sets on disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.batching import in_parts
from ssdd_jax.core.distilled import DistilledSet, Factors, compress, init_distilled, stored_coefficients
from ssdd_jax.core.optimizers import num_steps, outer_optimizer, sgd
from ssdd_jax.core.outer import OuterState, Place, anywhere, init_outer, make_outer_step, make_warm_up_step, warm_up_ages
from ssdd_jax.core.pool import over_leading_axis
from ssdd_jax.core.real import RealImages
from ssdd_jax.core.views import apply_views
from ssdd_jax.errors import DataError
from ssdd_jax.io.artifacts import save_distilled
from ssdd_jax.io.manifest import damaged_files, read_manifest
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import health, hosts
from ssdd_jax.runtime.devices import make_devices, placement, pool_axis
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.feed import Table
from ssdd_jax.runtime.loop import Loop, stack, unstack
from ssdd_jax.runtime.memory import FEW_ROWS, TooLarge, limit_bytes, rows_at_once
from ssdd_jax.settings.spec import MemorySpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.teacher import Teacher


def beside_the_pool(state: OuterState) -> OuterState:
    """Return what of a state is looked at whether it is finite.

    The members that a step trains are finite if their `member_norm` is; reading the pool would copy it, which is changed in place.
    """
    return replace(state, pool=None)


def on_batches(outer_step: Callable, real: RealImages, teacher: Teacher, *, rows_at_once: int = 0, place: Place = anywhere) -> Callable:
    """Return the outer step on what is drawn: (state, step number, batch, seed, teacher's variables if needed) -> (state, metrics).

    A batch has images and, unless they are augmented afresh in every step, the teacher's representations. Where the teacher runs, it
    sees so many images at a time, see `in_parts`.
    """

    def step(state, step_number, batch, seed, variables):
        images = real.images(batch[0], step_number, seed)
        represent = lambda rows: replace(teacher, variables=variables).represent(place("data", rows))
        reprs = batch[1] if real.names else in_parts(represent, images, rows_at_once)
        return outer_step(state, images, reprs, real.outer_key(step_number, seed))

    return step


class Distiller:
    """Distils one method for groups of seeds; what is compiled is shared by all groups."""

    def __init__(self, context: Context, name: str):
        self.context, self.name = context, name
        self.spec, self.method, self.plan = context.spec, context.spec.methods[name], context.plan(name)
        self.total = num_steps(self.spec, self.method)
        layout = self.plan.layout
        self.joint = round(self.method.joint * self.total) if layout.count("network") else 0
        self.network_views = [view for view, kind in zip(layout.views, layout.view_targets, strict=True) if kind == "network"]
        self.devices = make_devices(pool_axis(self.spec))
        # One loop a phase: the schedule of the joint phase goes on where the free one ends.
        self.loops = {"free": self._loop(0), "joint": self._loop(self.total - self.joint)}
        self.init = jax.jit(over_leading_axis(self._init))
        self.compress = jax.jit(over_leading_axis(self._compress))
        self.represent = jax.jit(context.teacher.represent)
        # It trains one member at a time, so that all devices are for its rows.
        self.warm_up_devices = make_devices()
        self.warm_up_loop = Loop(
            self._warm_up_step,
            (0, 0, None),
            self.spec.steps_per_dispatch,
            watch=beside_the_pool,
            causes=self._causes,
            limit=limit_bytes(self.spec.memory),
            devices=self.warm_up_devices,
        )

    def distill(self, seeds: Sequence[int]) -> None:
        """Distil for a group of seeds and save the sets, unless sets of the same settings are there."""
        context, name = self.context, self.name
        identity = context.distilled_digest(name)
        if hosts.agree(hosts.is_writer() and all(self.is_complete(context.distilled_folder(name, seed), identity) for seed in seeds)):
            return
        started = time.monotonic()
        label, seed_array = "_".join(map(str, seeds)), jnp.asarray(seeds)
        folder = context.checkpoints / f"{name}-{identity}-seeds_{label}"
        sets, last, r2 = stack([self.initial_set(seed) for seed in seeds]), None, None
        self.seconds_before = 0.0
        if self.total > self.joint:
            last = self.optimise("free", sets, last, seed_array, folder, label)
            sets = last.distilled
        if self.network_views:
            sets, r2 = self.compress(sets, seed_array)
        if self.joint:
            last = self.optimise("joint", sets, last, seed_array, folder, label)
            sets = last.distilled
        if any(bool(bad.any()) for bad in health.not_finite({}, sets).values()):
            raise health.NumericalError(
                f"distill/{name}: the fit of the approximation networks diverged; lower config.methods.{name}.hidden"
            )
        if not hosts.is_writer():
            return
        seconds = (time.monotonic() - started + self.seconds_before) / len(seeds)
        raises = np.zeros(len(seeds), int) if last is None else np.asarray(last.ridge_raises)
        for i, (seed, distilled) in enumerate(zip(seeds, unstack(sets), strict=True)):
            if raises[i]:
                context.display.print(
                    f"warning: {name}, seed {seed}: kernels singular to float32 had their ridge raised tenfold {raises[i]} times; "
                    f"raise config.outer.ridge ({self.spec.outer.ridge}), or look for equal images"
                )
            save_distilled(
                context.distilled_folder(name, seed),
                distilled,
                method=name,
                seed=seed,
                steps=self.total,
                ridge_raises=int(raises[i]),
                seconds=round(seconds, 1),
                approximation=None if r2 is None else dict(zip(self.network_views, map(float, r2[i]), strict=True)),
                dataset=context.data.name,
                normalization={"mean": context.data.mean.tolist(), "std": context.data.std.tolist()},
                teacher={
                    "digest": context.teacher.digest,
                    "net": context.spec.teacher.net,
                    "centre": context.teacher.centre.tolist(),
                    "scale": context.teacher.scale,
                },
                digest=identity,
            )

    def is_complete(self, folder: Path, identity: str) -> bool:
        """Return whether a folder holds a whole set of this identity; what is damaged is named, and made again."""
        try:
            manifest = read_manifest(folder)
            names = [] if manifest is None else damaged_files(folder)
        except DataError as error:
            self.context.display.print(f"warning: {error}; it is made again")
            return False
        if names:
            self.context.display.print(f"warning: {folder} is damaged ({', '.join(names)} not as written); it is made again")
        return manifest is not None and manifest.get("digest") == identity and not names

    def initial_set(self, seed: int) -> DistilledSet:
        """Return the start: m real training images and the teacher's representations of their views."""
        context, method, layout = self.context, self.method, self.plan.layout
        order = jax.random.permutation(step_key(seed, Stream.DISTILLED_INIT), len(context.data.train_images))
        images = context.data.normalize(jnp.asarray(context.data.train_images[np.asarray(order[: self.plan.num_images])]))
        view_reprs = np.stack([in_batches(self.represent, view) for view in apply_views(images, layout.views)])
        return init_distilled(
            images,
            jnp.asarray(view_reprs),
            layout,
            image_pca=context.pca(layout, method.image_bases, self.name),
            repr_pca=context.pca(None, method.repr_bases, self.name),
            factor_scale=method.factor_scale if method.factor_scale == "balanced" else float(method.factor_scale),
        )

    def optimise(self, phase: str, sets: Any, last: OuterState | None, seeds: jax.Array, folder: Path, label: str) -> OuterState:
        """Run the outer steps of a phase, from its newest checkpoint if there is one, or from `last`, where the one before ended."""
        context, spec = self.context, self.spec
        first, end = (0, self.total - self.joint) if phase == "free" else (self.total - self.joint, self.total)
        state = self.init(sets, seeds)
        if last is not None:
            state = replace(state, pool=last.pool, ridge_raises=last.ridge_raises)
        checkpoints, done, state = context.resumable(folder / phase, state)
        args = (seeds, context.teacher.variables if context.real_targets is None else None)
        tables = [context.train_images, *([] if context.real_targets is None else [context.real_targets])]
        with checkpoints:
            try:
                if done == 0 and last is None:
                    state, checkpoints.seconds_before = self.warm_up(state, seeds, folder / "warm_up")
                self.seconds_before += checkpoints.seconds_before
                return self.loops[phase].run(
                    state,
                    end,
                    args,
                    tables=tables,
                    display=context.display,
                    name=f"distill/{self.name}/seeds_{label}",
                    start=max(first, done),
                    metrics=context.metrics,
                    log_every=spec.log_every,
                    checkpoints=checkpoints,
                )
            except TooLarge as error:
                raise TooLarge(f"{self.name}: {error}; {self._what_fits(state, args, tables)}") from error

    def _what_fits(self, state: OuterState, args: tuple[Any, ...], tables: list[Table]) -> str:
        """Return the settings nearest to the present ones of whose step there is enough memory."""
        memory = replace(self.spec.memory, remat=True, rows_at_once=FEW_ROWS)
        count = self.method.support_images or self.plan.num_images
        batch = lambda table: jax.ShapeDtypeStruct((len(args[0]), self.spec.outer.batch_size, *table.shape[1:]), table.dtype)
        on_device = all(isinstance(table, jax.Array) for table in tables)
        given = (tuple(tables), None) if on_device else ((), tuple(map(batch, tables)))
        while count:
            try:
                self._loop(0, memory, count).compile(state, jnp.asarray(0), 1, None, *given, *args)
            except TooLarge:
                count //= 2
                continue
            fewer = f" --config.methods.{self.name}.support_images={count}" if count != self.method.support_images else ""
            return f"what fits is --config.memory.remat=True --config.memory.rows_at_once={FEW_ROWS}{fewer}"
        return "lower config.outer.batch_size, or take a smaller config.student"

    def warm_up(self, state: Any, seeds: jax.Array, folder: Path) -> tuple[Any, float]:
        """Give every member of every seed's pool its random age, trained on the initial set; return also earlier attempts' seconds."""
        context, pool = self.context, self.spec.pool
        ages = jax.vmap(lambda seed: warm_up_ages(step_key(seed, Stream.POOL_WARM_UP), pool.size, pool.max_age))(seeds)
        # Member by member, each as long as any seed needs.
        members = np.repeat(np.arange(pool.size), np.asarray(ages).max(0))
        # It lasts long where members grow old, so it has checkpoints; none if it is done in a few minutes.
        checkpoints, start, state = context.resumable(folder, state, every=0)
        with checkpoints:
            state = self.warm_up_loop.run(
                state,
                len(members),
                (ages, seeds, jnp.asarray(members)),
                display=context.display,
                name=f"warm up {self.name}",
                start=start,
                checkpoints=checkpoints,
            )
        return state, checkpoints.seconds_before

    @property
    def _causes(self) -> dict[str, str]:
        """Return what may be to blame where a number goes bad."""
        rate = f"config.methods.{self.name}.learning_rate ({self.method.learning_rate})"
        regression = f"the regression; lower {rate} or raise config.outer.ridge ({self.spec.outer.ridge})"
        members = f"the training of the pool; lower config.pool.learning_rate ({self.spec.pool.learning_rate})"
        return {
            "loss": regression,
            "grad_norm": regression,
            "member_loss": members,
            "member_norm": members,
            "distilled": f"too large a step; lower {rate}",
        }

    def _loop(self, start: int, memory: MemorySpec | None = None, support_images: int | None = None) -> Loop:
        """Build the loop of the outer step on real batches: (state, step number, batch, seed, teacher's variables if needed).

        `memory` and `support_images` are those of the settings, unless what would fit is sought.
        """
        spec, shape, real, teacher = self.spec, self.context.data.image_shape, self.context.real, self.context.teacher
        spec = spec if memory is None else replace(spec, memory=memory)
        place = placement(self.devices)
        outer_step = make_outer_step(
            learner=self.context.learner,
            optimizer=outer_optimizer(spec, self.method, start),
            inner_optimizer=sgd(spec.pool),
            max_age=spec.pool.max_age,
            members_per_step=spec.pool.members_per_step,
            support_images=self.method.support_images if support_images is None else support_images,
            ridge=spec.outer.ridge,
            ridge_scale=spec.outer.ridge_scale,
            rows_at_once=rows_at_once(spec.memory, self.context.learner, shape),
            remat=spec.memory.remat,
            place=place,
        )
        # Asked only where the teacher is part of the step, since it is traced to tell.
        teacher_rows = 0 if real.names else rows_at_once(spec.memory, teacher.learner, shape)
        step = on_batches(outer_step, real, teacher, rows_at_once=teacher_rows, place=place)
        draw = lambda step_number, seed, _: real.draw(step_number, seed)
        return Loop(
            step,
            (0, None),
            spec.steps_per_dispatch,
            draw,
            watch=beside_the_pool,
            causes=self._causes,
            limit=limit_bytes(spec.memory),
            devices=self.devices,
        )

    def _init(self, distilled: DistilledSet, seed: jax.Array):
        """Return the state before the first step of a phase."""
        return init_outer(
            step_key(seed, Stream.POOL_INIT),
            distilled,
            learner=self.context.learner,
            optimizer=outer_optimizer(self.spec, self.method),
            inner_optimizer=sgd(self.spec.pool),
            pool_size=self.spec.pool.size,
        )

    def _warm_up_step(self, state: Any, number: jax.Array, ages: jax.Array, seed: jax.Array, members: jax.Array) -> tuple[Any, Any]:
        """Train one member of one pool for one step; keys are numbered from 1, ages are drawn at 0."""
        learner, inner_optimizer = self.context.learner, sgd(self.spec.pool)
        place, count = placement(self.warm_up_devices), self.method.support_images
        step = make_warm_up_step(learner=learner, inner_optimizer=inner_optimizer, support_images=count, place=place)
        return step(state, members[number], ages, step_key(seed, Stream.POOL_WARM_UP, number + 1))

    def _compress(self, distilled: DistilledSet, seed: jax.Array) -> tuple[DistilledSet, jax.Array]:
        """Fit the approximation networks, drop what they replace, and return the set with R^2 "A"."""
        layout, reprs = self.plan.layout, distilled.reprs
        free = [view for view, kind in zip(layout.views, distilled.layout.view_targets, strict=True) if kind == "stored"]
        coefficients = stored_coefficients(reprs)
        networks, r2 = fit_networks(
            step_key(seed, Stream.NETWORKS),
            coefficients[0],
            coefficients[jnp.array([free.index(view) for view in self.network_views])],
            hidden=self.method.hidden,
            bases=reprs.bases if isinstance(reprs, Factors) else None,
            num_steps=self.method.network_steps,
        )
        return compress(distilled, layout, networks), r2
