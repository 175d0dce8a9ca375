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


def member_learners(spec: RunSpec, image_shape: tuple[int, int, int], width: int) -> dict[str, Learner]:
    """Return the networks of the pool's members with `width` outputs, by label, at the precision of the outer step."""
    where = "config.pool.nets.{}" if spec.pool.nets else "config.student"
    learner = lambda label, net: student_learner(net, image_shape, width, where.format(label), precision=spec.outer.precision)
    return {label: learner(label, net) for label, net in spec.members().items()}
