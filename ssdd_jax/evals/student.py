"""Student pretraining on a distilled set, and how far its representation is from the teacher's."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ssdd_jax.core.pool import Learner, MemberState, train_member


def make_student_step(*, learner: Learner, optimizer: optax.GradientTransformation) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build step(member, step, schedule "s b", images "n H W C", reprs "n d") -> (member, metrics), one minibatch update.

    `schedule` is of `ssdd_jax.evals.batches.batch_schedule`; images are normalized.
    """

    def step(member: MemberState, step_number, schedule, images, reprs):
        rows = schedule[step_number]
        member, loss = train_member(member, images[rows], reprs[rows], learner, optimizer)
        return member, {"loss": loss}

    return step


def repr_error(predicted: Float[Array, "n d"], reprs: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the mean squared error divided by the variance of `reprs`: 0 is perfect, 1 is no better than their mean."""
    return jnp.mean((predicted - reprs) ** 2) / jnp.mean((reprs - reprs.mean(0, keepdims=True)) ** 2)
