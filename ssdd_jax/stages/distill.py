"""The distillation stage: from real images to distilled sets on disk, whatever the method."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.core.distilled import DistilledSet
from ssdd_jax.core.pool import over_leading_axis
from ssdd_jax.cores import available_cores
from ssdd_jax.errors import DataError
from ssdd_jax.io.artifacts import save_distilled
from ssdd_jax.io.checkpoints import Checkpoints, is_step
from ssdd_jax.io.manifest import damaged_files, read_manifest
from ssdd_jax.methods.method import TEACHER, Inputs, Method, Phase
from ssdd_jax.methods.plan import Plan
from ssdd_jax.registry import METHODS
from ssdd_jax.report.figures import DRAWABLE, bases_picture, images_picture
from ssdd_jax.runtime import health, hosts, stop
from ssdd_jax.runtime.devices import Devices, make_devices, on_cpu, placement, pool_axis
from ssdd_jax.runtime.feed import Table
from ssdd_jax.runtime.loop import Loop, seed_groups, stack, unstack
from ssdd_jax.runtime.memory import TooLarge, chunk_size, limit_bytes
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.stages.choose import choose_settings
from ssdd_jax.stages.context import Context


def distill(context: Context) -> None:
    """Distil the sets that do not exist yet, with automatic settings chosen first."""
    choose_settings(context, MethodRun)
    spec, display = context.spec, context.display
    plans = {name: context.plan(name) for name in context.methods}
    display.print(f"budget: {spec.num_pairs} pairs = {context.budget} numbers")
    for name, plan in plans.items():
        kinds = ", ".join(f"{view} {kind}" for view, kind in zip(plan.layout.views, plan.layout.view_targets, strict=True))
        display.print(f"  {name}: {plan.num_images} images, {plan.stored_scalars} numbers; targets: {kinds}")
        for note in plan.notes:
            display.print(f"  note: {note}")
    for name, reason in context.absent.items():
        display.print(f"  {name}: –, {reason}")
    for name in plans:
        run = MethodRun(context, name)
        for group in seed_groups(spec.seeds, spec.seeds_at_once):
            run.distill(group)


def make_inputs(context: Context, name: str, devices: Devices | None, rows: np.ndarray | None = None) -> Inputs:
    """Return what a method is given, of all training images or of some, integers "k"; nothing is computed yet."""
    spec, data, shape = context.spec, context.data, context.data.image_shape
    shard = placement(devices)

    def represent_in_step(variables: Any, images: jax.Array) -> jax.Array:
        learner = context.teacher.learner
        part_of = lambda part: context.teacher.represent_with(variables, shard("data", part))
        return map_in_chunks(part_of, images, chunk_size(spec.memory, learner, shape))

    of = (lambda chosen: chosen) if rows is None else (lambda chosen: rows[chosen])
    every = slice(None) if rows is None else rows
    return Inputs(
        name=name,
        run=spec,
        num_train=len(data.train_images if rows is None else rows),
        image_shape=shape,
        num_classes=data.num_classes,
        labels=data.train_labels if rows is None or data.train_labels is None else data.train_labels[rows],
        normalize=data.normalize,
        images=lambda chosen: context.normalized_images(of(chosen)),
        learners=context.learners,
        real=context.real_among(rows),
        view_reprs=lambda chosen, views: context.view_reprs(of(chosen), views),
        train_reprs=lambda: context.reprs("train")[every],
        represent_in_step=represent_in_step,
        teacher_variables=lambda: context.teacher.variables,
        image_pca=lambda base_shape, count: context.pca(base_shape, count, name, rows),
        repr_pca=lambda count: context.pca(None, count, name, rows),
        experts=lambda settings: context.experts(settings, f"config.methods.{name}.experts"),
        shard=shard,
        chunk_size=cache(lambda learner: chunk_size(spec.memory, learner, shape)),
    )


class MethodRun:
    """Distils one method for groups of seeds; all groups share the compiled programs.

    Args:
        context: of the run.
        name: of the method.
        rows: training images that sets are made of, integers "k"; all if None.
    """

    def __init__(self, context: Context, name: str, rows: np.ndarray | None = None):
        self.context, self.name, self.spec = context, name, context.settings(name)
        self.method: Method = METHODS[self.spec.kind]
        self.plan: Plan = context.plan(name)
        self.devices = make_devices(pool_axis(context.spec.devices, context.spec.pool.members_per_step))
        self.inputs = make_inputs(context, name, self.devices, rows)
        if rows is not None:
            self.plan = replace(self.plan, num_images=min(self.plan.num_images, len(rows)))
        self.phases = self.method.phases(self.spec, self.plan, self.inputs)
        self.inits = [jax.jit(over_leading_axis(phase.init)) for phase in self.phases]
        self.loops = [self._loop(phase) for phase in self.phases]

    def distill(self, seeds: Sequence[int]) -> None:
        """Distil for a group of seeds and save the sets, unless sets with the same settings exist."""
        context, name = self.context, self.name
        identity, choice = context.distilled_digest(name), context.choice_seconds.get(name, 0.0)
        folders = [context.distilled_folder(name, seed) for seed in seeds]
        if hosts.agree(hosts.is_writer() and all(is_complete(context, folder, identity) for folder in folders)):
            return
        started = time.monotonic()
        checkpoints = context.checkpoints / f"{name}-{identity}-seeds_{'_'.join(map(str, seeds))}"
        states, seconds_before, stopped = self.states(seeds, checkpoints)
        if not hosts.is_writer():
            return
        seconds = round((time.monotonic() - started + seconds_before) / len(seeds) + choice, 1)
        # The same settings make a stopped set again, from the checkpoint of that step if it is kept.
        identity, cut_off = (identity, {}) if stopped is None else (f"{identity}, stopped", {"steps": stopped})
        for seed, folder, state in zip(seeds, folders, states, strict=True):
            distilled, facts, warnings = self.method.finish(self.spec, self.plan, self.inputs, state)
            facts = {**facts, **cut_off}
            for warning in warnings:
                context.display.print(f"warning: {name}, seed {seed}: {warning}")
            self._show(facts.get("steps", 0), seed, distilled)
            save_distilled(
                folder,
                distilled,
                method=name,
                seed=seed,
                seconds=seconds,
                dataset=context.data.name,
                normalization={"mean": context.data.mean.tolist(), "std": context.data.std.tolist()},
                teacher={"net": context.spec.teacher.net, **context.teacher.facts()} if TEACHER in self.method.needs else None,
                digest=identity,
                **({"chosen": json_ready(self.spec)} if name in context.chosen else {}),
                **facts,
            )

    def states(self, seeds: Sequence[int], folder: Path) -> tuple[list[Any], float, int | None]:
        """Run all phases, from the newest checkpoint if any.

        Returns:
            Every seed's last state, the seconds that earlier attempts took, and, if the run was asked to stop and goes on to the set that
            it has got to, the steps that this set has had.
        """
        context, seconds_before, stopped, seed_array = self.context, 0.0, None, jnp.asarray(seeds)
        begun = hosts.agree(max((i for i, phase in enumerate(self.phases) if _has_checkpoint(folder / phase.name)), default=0))
        state = stack([self.method.start(self.spec, self.plan, self.inputs, seed) for seed in seeds])
        for i, (phase, init, loop) in enumerate(zip(self.phases, self.inits, self.loops, strict=True)):
            state = init(seed_array, state)
            if any(bool(bad.any()) for bad in jax.jit(health.not_finite)({}, phase.watch(state)).values()):
                cause = phase.causes.get("init", "the result of the previous phase")
                raise health.NumericalError(
                    f"distill/{self.name}: the initial state of the {phase.name} phase is not finite; likely cause: {cause}"
                )
            num_steps = phase.num_steps(seeds) if callable(phase.num_steps) else phase.num_steps
            if num_steps and stopped is None:
                settings = {"every": 0} if phase.preparatory else {}
                checkpoints, done, state = context.resumable(folder / phase.name, state, **settings)
                with checkpoints:
                    # A later phase has begun, so this one was completed; a short phase leaves no checkpoint.
                    if i >= begun:
                        if phase.preparatory:
                            self._compile_ahead(i + 1, seed_array, state)
                        try:
                            state = self._optimise(phase, loop, state, seed_array, phase.first + num_steps, done, checkpoints)
                        except stop.Stopped as error:
                            if not context.given.partial:
                                raise
                            state, stopped = error.state, 0 if phase.preparatory else error.step
                            context.display.print(f"warning: {self.name}: stopped after {stopped} steps; the set is what they have made")
                    seconds_before += checkpoints.seconds_before
        return unstack(state), seconds_before, stopped

    def _optimise(self, phase: Phase, loop: Loop, state: Any, seeds: jax.Array, end: int, done: int, checkpoints: Checkpoints) -> Any:
        """Run the remaining steps of a phase."""
        context, tables = self.context, self._tables(phase)
        label = "_".join(map(str, seeds.tolist()))
        args = (seeds, phase.shared())
        name = f"{phase.name.replace('_', ' ')} {self.name}" if phase.preparatory else f"distill/{self.name}/seeds_{label}"
        try:
            return loop.run(
                state,
                end,
                args,
                tables=tables,
                display=context.display,
                name=name,
                start=max(phase.first, done),
                metrics=None if phase.preparatory else context.metrics,
                log_every=context.spec.log_every,
                checkpoints=checkpoints,
                on_save=partial(self._show_state, phase, end, seeds.tolist()),
            )
        except TooLarge as error:
            raise TooLarge(f"{self.name}: {error}; {self._what_fits(phase, state, seeds)}") from error

    def _compile_ahead(self, i: int, seeds: jax.Array, state: Any) -> None:
        """Begin to compile the steps of phase i, whose initial state depends on one like `state`, if there is a core to spare."""
        if i == len(self.phases) or self.devices is not None or not on_cpu() or available_cores() == 1:
            return
        phase, loop = self.phases[i], self.loops[i]
        if loop.steps_per_dispatch == 1:
            loop.compile_ahead(*self._operands(phase, jax.eval_shape(self.inits[i], seeds, state), seeds))

    def _show_state(self, phase: Phase, end: int, seeds: Sequence[int], step: int, state: Any) -> None:
        """Show loggers the sets of a group of seeds while they move; those after the last step are shown when they are finished."""
        stacked = getattr(state, "distilled", None)
        if stacked is None or phase.preparatory or step == end:
            return
        like = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], stacked))
        for place, seed in enumerate(seeds):
            # Through the host: of several processes this one alone computes with them.
            one = lambda leaf, place=place: jnp.asarray(np.asarray(leaf)[place])
            self._show(step, seed, like, lambda one=one: jax.tree.map(one, stacked))

    def _show(self, step: int, seed: int, like: DistilledSet, read: Callable[[], DistilledSet] | None = None) -> None:
        """Show loggers pictures of a set, which is read, and they are drawn, only if a logger takes any."""
        context, layout = self.context, like.layout
        if layout.image_shape[2] not in DRAWABLE:
            return
        read = read or (lambda: like)
        pictures = {"images": lambda: images_picture(read(), context.data.mean, context.data.std)}
        if jax.eval_shape(lambda of: of.images.bases, like) is not None:
            pictures["bases"] = lambda: bases_picture(read().images.bases, layout.base_shape)
        for name, draw in pictures.items():
            context.metrics.loggers.picture(f"distill/{self.name}", step, f"{name}/seed_{seed}", draw)

    def _what_fits(self, phase: Phase, state: Any, seeds: jax.Array) -> str:
        """Return the settings nearest to the present ones whose step fits into memory."""
        for flags, smaller in phase.smaller():
            try:
                self._loop(smaller).compile(*self._operands(smaller, state, seeds))
            except TooLarge:
                continue
            return f"what fits is {flags}"
        own = lambda *settings: next((f"config.methods.{self.name}.{name}" for name in settings if hasattr(self.spec, name)), "")
        batch = own("batch_per_class", "batch_size") or "config.outer.batch_size"
        network = own("net", "experts") or ("config.student" if "student" in self.method.sections else "")
        return f"lower {batch}" + (f", or take a smaller {network}" if network else "")

    def _operands(self, phase: Phase, state: Any, seeds: jax.Array) -> tuple[Any, ...]:
        """Return operands of a loop's dispatch of one step; batches that are read ahead are abstract."""
        tables = self._tables(phase)
        batch = lambda table, rows: jax.ShapeDtypeStruct((len(seeds), *rows.shape, *table.shape[1:]), table.dtype)
        drawn = () if phase.draw is None else jax.eval_shape(phase.draw, 0, seeds[0])
        on_device = all(isinstance(table, jax.Array) for table in tables)
        given = (tuple(tables), None) if on_device else ((), tuple(map(batch, tables, drawn)))
        return state, jnp.asarray(0), 1, None, *given, seeds, phase.shared()

    def _tables(self, phase: Phase) -> list[Table]:
        named = {
            "images": lambda: self.context.train_images,
            "targets": lambda: self.context.real_targets,
            "labels": lambda: self.context.train_labels,
        }
        return [named[table]() if isinstance(table, str) else table() for table in phase.tables]

    def _loop(self, phase: Phase) -> Loop:
        """Build the loop of a phase."""
        spec = self.context.spec
        draw = phase.draw
        step = phase.step if draw is not None else lambda state, number, seed, shared: phase.step(state, number, None, seed, shared)
        return Loop(
            step,
            (0, None),
            spec.steps_per_dispatch,
            None if draw is None else lambda number, seed, shared: draw(number, seed),
            watch=phase.watch,
            causes=phase.causes,
            limit=limit_bytes(spec.memory),
            devices=self.devices,
        )


def _has_checkpoint(folder: Path) -> bool:
    return hosts.is_writer() and folder.is_dir() and any(map(is_step, folder.iterdir()))


def is_complete(context: Context, folder: Path, identity: str) -> bool:
    """Return whether a folder holds an intact set of this identity; a damaged one is reported, and will be made again."""
    try:
        manifest = read_manifest(folder)
        names = [] if manifest is None else damaged_files(folder)
    except DataError as error:
        context.display.print(f"warning: {error}; it is made again")
        return False
    if names:
        context.display.print(f"warning: {folder} is damaged ({', '.join(names)} changed since written); it is made again")
    return manifest is not None and manifest.get("digest") == identity and not names
