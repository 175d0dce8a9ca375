"""The networks of a run, from its settings."""

from ssdd_jax.core.pool import Learner
from ssdd_jax.nets import net_widths, student_learner
from ssdd_jax.settings.spec import NetSpec, RunSpec, TeacherSpec


def repr_width(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> int:
    """Return the width d of a representation."""
    return net_widths(spec.net, spec.widths, image_shape, 1.0)[-1]


def teacher_learner(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> Learner:
    """Return the teacher's network; its outputs are the representation."""
    return student_learner(NetSpec(spec.net, spec.widths), image_shape, 0, "config.teacher", pooled=True, precision=spec.precision)


def member_learner(spec: RunSpec, image_shape: tuple[int, int, int], width: int) -> Learner:
    """Return the network of the pool's members with `width` outputs: the student's, at the precision of the outer step."""
    return student_learner(spec.student, image_shape, width, "config.student", precision=spec.outer.precision)
