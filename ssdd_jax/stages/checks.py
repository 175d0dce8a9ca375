"""What is refused, or warned about, before anything runs."""

from collections.abc import Sequence

import jax

from ssdd_jax.core.views import check_views
from ssdd_jax.errors import InputError
from ssdd_jax.methods.method import LABELS
from ssdd_jax.nets import student_learner
from ssdd_jax.registry import METHODS
from ssdd_jax.runtime.devices import pool_axis
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.context import absent_methods, experts_of
from ssdd_jax.stages.dataset import Data
from ssdd_jax.stages.experts import trajectory_files
from ssdd_jax.stages.networks import member_learner, repr_width, teacher_learner


def check_sizes(spec: RunSpec, data: Data, methods: Sequence[str]) -> None:
    """Refuse, before anything runs, sizes that cannot work whatever the teacher turns out to be; `methods` are those that will be run."""
    image_shape = data.image_shape
    teacher_learner(spec.teacher, image_shape)
    width = repr_width(spec.teacher, image_shape)
    if methods:
        member_learner(spec, image_shape)
    if methods and spec.outer.real_augment == "views":
        views = spec.outer.real_views
        try:
            check_views(views, image_shape)
        except ValueError as error:
            raise InputError(f"config.outer.real_views: {error}; ('identity',) augments nothing") from error
    for label, student in spec.evaluation.students.items():
        student_learner(student, image_shape, width, f"config.evaluation.students.{label}")
    for name in methods:
        if LABELS in METHODS[spec.methods[name].kind].needs and data.train_labels is None:
            raise InputError(
                f"config.methods.{name} needs labels, {data.name} has none; leave it out of config.only, or take labelled data"
            )
        if (experts := experts_of(spec.methods[name])) is not None:
            trajectory_files(experts.files, f"config.methods.{name}.experts.files")
    absent_methods(spec, data, methods)


def check_batches(spec: RunSpec) -> None:
    """Refuse batches that cannot be sharded evenly.

    Raises:
        InputError: a batch size is not a multiple of the devices that its rows are sharded over.
    """
    count = jax.device_count()
    sizes = {
        "outer": (spec.outer.batch_size, count // pool_axis(spec.devices, spec.pool.members_per_step)),
        "teacher": (spec.teacher.batch_size, count),
    }
    if spec.teacher.checkpoint:
        del sizes["teacher"]
    for section, (size, parts) in sizes.items():
        if size % parts:
            nearest = max(parts, parts * round(size / parts))
            raise InputError(
                f"config.{section}.batch_size is {size}, expected a multiple of the {parts} devices that it is sharded over; "
                f"{nearest} is the nearest"
            )
