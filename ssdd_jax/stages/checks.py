"""What is refused, or warned about, before anything runs."""

from collections.abc import Sequence

import jax

from ssdd_jax.core.views import check_views
from ssdd_jax.errors import InputError
from ssdd_jax.methods.method import LABELS, TEACHER
from ssdd_jax.nets import student_learner
from ssdd_jax.registry import METHODS
from ssdd_jax.runtime.devices import pool_axis
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.context import Context, absent_methods, experts_of
from ssdd_jax.stages.dataset import Data
from ssdd_jax.stages.experts import trajectory_files
from ssdd_jax.stages.networks import member_learners, repr_width, teacher_learner


def check_sizes(spec: RunSpec, data: Data, methods: Sequence[str], width: int | None = None) -> None:
    """Refuse, before anything runs, sizes that cannot work whatever the teacher turns out to be.

    Args:
        spec: the settings.
        data: the images.
        methods: those that will be run.
        width: of a representation of a teacher that is no network of the settings; None for one that is.
    """
    image_shape = data.image_shape
    if width is None:
        teacher_learner(spec.teacher, image_shape)
        width = repr_width(spec.teacher, image_shape)
    if methods:
        member_learners(spec, image_shape, width)
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
    absent_methods(spec, data, methods, width)


def check_features(context: Context, methods: Sequence[str], evaluates: bool) -> None:
    """Refuse, before anything runs, a teacher of features that have no row for what would be asked of it.

    Args:
        context: of the run.
        methods: those that will be run, or whose sets are evaluated.
        evaluates: whether students are evaluated.

    Raises:
        InputError: an array is missing or has the wrong length, or something else than the dataset's images would be represented.
    """
    spec, features = context.spec, context.features
    if features is None:
        return
    asking = [name for name in methods if TEACHER in METHODS[spec.methods[name].kind].needs]
    for name in asking:
        for view in context.views_of(spec.methods[name]):
            features.take(context.data.train_rows, view, f"config.methods.{name}")
    if asking and spec.outer.real_augment != "views":
        raise InputError(
            f"config.outer.real_augment is {spec.outer.real_augment!r}, but {features.where} has no network that represents crops; "
            "set it to 'views'"
        )
    for view in spec.outer.real_views if asking else ("identity",):
        features.take(context.data.train_rows, view, "config.outer.real_views")
    if evaluates:
        features.take(context.labelled.eval_rows, asked_by=f"evaluation on {spec.evaluation.split}")
        setting = "teacher_targets" if spec.evaluation.teacher_targets else ""
        setting = setting or ("datasets" if spec.evaluation.datasets and "teacher" in spec.evaluation.controls else "")
        if setting:
            raise InputError(
                f"config.evaluation.{setting} needs representations of other images, but {features.where} has no network; "
                + ("set it to False" if setting == "teacher_targets" else "leave teacher out of config.evaluation.controls")
            )


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
    if spec.teacher.checkpoint or spec.teacher.features:
        del sizes["teacher"]
    for section, (size, parts) in sizes.items():
        if size % parts:
            nearest = max(parts, parts * round(size / parts))
            raise InputError(
                f"config.{section}.batch_size is {size}, expected a multiple of the {parts} devices that it is sharded over; "
                f"{nearest} is the nearest"
            )
