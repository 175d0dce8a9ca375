"""The student of a label: its network, its pretraining, and what it makes of a dataset."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssdd_jax.core.batching import batch_schedule, batches_per_epoch
from ssdd_jax.core.optimizers import student_optimizer
from ssdd_jax.core.pool import Learner, init_member
from ssdd_jax.evals.protocol import Encoded, Trainable
from ssdd_jax.evals.student import make_augment, make_student_step, make_student_update, student_loss
from ssdd_jax.io.pairs import Pairs
from ssdd_jax.nets import student_learner
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.feed import Table
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.runtime.loop import Loop, stack, unstack
from ssdd_jax.settings.spec import NetSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import Data, normalize


@dataclass
class Compiled:
    """What is compiled, of one student at a time: what was compiled for the last one is let go."""

    label: str | None = None
    things: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, label: str | None, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return make(), kept as long as the label stays the same."""
        if label != self.label:
            self.label, self.things = label, {}
        if key not in self.things:
            self.things[key] = make()
        return self.things[key]


@dataclass(frozen=True, eq=False)
class Student:
    """A student network.

    Attributes:
        label: among the students of the settings.
        net: its settings.
        kind: what the targets are that it is pretrained on.
        learner: with as many outputs as they are wide.
        encode: jitted (variables, uint8 images, mean, std) -> (features, representations).
        where: the setting that it comes from, for messages.
        compiled: where its loops are kept.
    """

    label: str
    net: NetSpec
    kind: str
    learner: Learner
    encode: Callable[..., tuple[jax.Array, jax.Array]]
    where: str
    compiled: Compiled


def get_student(context: Context, compiled: Compiled, label: str, width: int, kind: str) -> Student:
    """Return the student of a label with `width` outputs, for targets of a kind."""

    def make() -> Student:
        where = f"config.evaluation.students.{label}" if context.spec.evaluation.students else "config.student"
        net = context.spec.students()[label]
        learner = student_learner(net, context.data.image_shape, width, where)
        # Of one function, so that the network runs once for both.
        both = lambda variables, images: (learner.features(variables, images), learner.apply(variables, images))
        encode = jax.jit(lambda variables, batch, mean, std: both(variables, normalize(batch, mean, std)))
        return Student(label, net, kind, learner, encode, where, compiled)

    return compiled.once(label, ("student", width, kind), make)


def untrained(student: Student, seeds: Sequence[int]) -> list[Any]:
    """Return the untrained variables of every seed."""
    return [student.learner.init(step_key(seed, Stream.STUDENT_INIT)) for seed in seeds]


def pretrain(
    context: Context,
    student: Student,
    name: str,
    folder: Path,
    seeds: Sequence[int],
    sets: Sequence[Pairs],
    rates: Sequence[float | None] = (),
) -> list[Any]:
    """Pretrain one fresh student per seed on its own set and return their variables.

    `folder` is that of its checkpoints, of which a student that is pretrained in a few minutes makes none. `rates` are the learning rates
    of the sets where the recipe's is 0.

    Raises:
        NumericalError: a rate is not positive.
    """
    images, targets = (stack([jnp.asarray(getattr(pairs, part)) for pairs in sets]) for part in ("images", "targets"))

    def loop(settings: dict[str, Any], axes: tuple[int, ...]) -> Loop:
        return Loop(make_student_step(**settings), axes, causes=_causes(context, student))

    return _pretrain(context, student, name, folder, seeds, images.shape[1], loop, (images, targets), rates=rates)


def pretrain_on_all(
    context: Context, student: Student, name: str, folder: Path, seeds: Sequence[int], images: Table, targets: Table
) -> list[Any]:
    """Pretrain one fresh student per seed on the same images "n H W C" uint8 and targets "n d"; return their variables."""

    def loop(settings: dict[str, Any], axes: tuple[int, ...]) -> Loop:
        update = make_student_update(**settings)

        def step(member, step_number, batch, schedule, *seed):
            return update(member, step_number, context.data.normalize(batch[0]), batch[1], *seed)

        draw = lambda step_number, schedule, *seed: (schedule[step_number],) * 2
        return Loop(step, axes, draw=draw, causes=_causes(context, student))

    return _pretrain(context, student, name, folder, seeds, len(images), loop, (), (images, targets))


def encode(student: Student, variables: Any, target: Data, allocate: Callable[..., np.ndarray] = np.empty) -> Encoded:
    """Return what the student makes of the training and of the evaluation images, in arrays that `allocate` makes."""
    mean, std = jnp.asarray(target.mean, jnp.float32), jnp.asarray(target.std, jnp.float32)
    run = lambda batch: student.encode(variables, batch, mean, std)
    train_features, train_reprs = in_batches(run, target.train_images, allocate)
    eval_features, eval_reprs = in_batches(run, target.eval_images, allocate)
    return Encoded(train_features, eval_features, train_reprs, eval_reprs)


def trainable(student: Student, variables: Sequence[Any], target: Data) -> Trainable:
    """Return the pretrained students for protocols that train them further on a dataset."""
    make_learner = lambda num_outputs: student_learner(student.net, target.image_shape, num_outputs, student.where)
    return Trainable(variables, make_learner, target.train_images, target.eval_images, target.normalize)


def _causes(context: Context, student: Student) -> dict[str, str]:
    setting, recipe = context.spec.evaluation.recipe(student.net, student.kind)
    value = recipe.learning_rate or "0, that of the set"
    return {"loss": f"config.evaluation.{setting}.learning_rate ({value}); lower it"}


def _pretrain(
    context: Context,
    student: Student,
    name: str,
    folder: Path,
    seeds: Sequence[int],
    num_rows: int,
    make_loop: Callable[[dict[str, Any], tuple[int, ...]], Loop],
    args: tuple[Any, ...],
    tables: tuple[Table, ...] = (),
    rates: Sequence[float | None] = (),
) -> list[Any]:
    spec = context.spec.evaluation
    _, recipe = spec.recipe(student.net, student.kind)
    bad = [rate for rate in rates if rate is not None and not rate > 0]
    if bad:
        raise NumericalError(f"{name}: the learning rate that the set was made with is {bad[0]:.3g}, at which nothing can be trained")
    batch_size = recipe.batch_size or spec.batch_size
    per_epoch = batches_per_epoch(num_rows, batch_size)
    updates = recipe.epochs * per_epoch or spec.updates or spec.epochs * per_epoch
    augment = make_augment(recipe)
    schedules = stack([batch_schedule(step_key(seed, Stream.STUDENT_STEP), num_rows, batch_size, updates) for seed in seeds])
    args = (schedules, *args, *((jnp.asarray(seeds),) if augment else ()))

    def make() -> tuple[Loop, optax.GradientTransformation]:
        optimizer = student_optimizer(recipe, updates, per_epoch)
        settings = dict(learner=student.learner, optimizer=optimizer, loss=student_loss(recipe, student.kind), augment=augment)
        return make_loop(settings, (0,) * len(args)), optimizer

    # Of the student itself: its width and kind are in its loop.
    loop, optimizer = student.compiled.once(student.label, (student, per_epoch, bool(tables)), make)
    students = stack([init_member(step_key(seed, Stream.STUDENT_INIT), student.learner, optimizer) for seed in seeds])
    if not recipe.learning_rate:
        students = replace(students, opt_state={**students.opt_state, "rate": jnp.asarray(rates, jnp.float32)})
    checkpoints, start, students = context.resumable(folder / "pretraining", students, every=0)
    with checkpoints:
        students = loop.run(
            students,
            updates,
            args,
            tables=tables,
            display=context.display,
            name=f"student/{name}",
            start=start,
            checkpoints=checkpoints,
        )
    return unstack(students.variables)
