"""The networks of a run, from its settings."""

from typing import Any

from ssdd_jax.core.pool import Learner
from ssdd_jax.errors import InputError
from ssdd_jax.nets import make_learner, net_widths
from ssdd_jax.settings.spec import NetSpec, RunSpec, TeacherSpec


def repr_width(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> int:
    """Return the width d of a representation."""
    return net_widths(spec.net, spec.widths, image_shape, 1.0)[-1]


def teacher_learner(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> Learner:
    """Return the teacher's network; its outputs are the representation."""
    return _learner(NetSpec(spec.net, spec.widths), image_shape, 0, "config.teacher", pooled=True, precision=spec.precision)


def student_learner(spec: NetSpec, image_shape: tuple[int, int, int], num_outputs: int, where: str = "config.student") -> Learner:
    """Return a student's network, with a linear layer of `num_outputs` on its flattened features."""
    return _learner(spec, image_shape, num_outputs, where)


def member_learner(spec: RunSpec, image_shape: tuple[int, int, int]) -> Learner:
    """Return the network of the pool's members: the student's, at the precision of the outer step."""
    width = repr_width(spec.teacher, image_shape)
    return _learner(spec.student, image_shape, width, "config.student", precision=spec.outer.precision)


def _learner(spec: NetSpec, image_shape: tuple[int, int, int], num_outputs: int, where: str, **settings: Any) -> Learner:
    try:
        return make_learner(spec.net, spec.widths, image_shape, num_outputs, width_factor=spec.width_factor, **settings)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
