"""Student pretraining on a distilled set, by what its targets are, and how far a representation is from the teacher's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ssdd_jax.core.pool import Learner, MemberState, mean_squared_error, train_member


def label_loss(outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return the mean cross-entropy of the classes; a row's class is the place of its largest target, one-hot or centred."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.argmax(targets, -1)).mean()


def logit_loss(outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return the mean cross-entropy against softmax(targets), at temperature 1."""
    return optax.softmax_cross_entropy(outputs, jax.nn.softmax(targets)).mean()


LOSSES: dict[str, Callable[..., Any]] = {"representation": mean_squared_error, "labels": label_loss, "logits": logit_loss}
"""(outputs, targets) -> what a student is trained on, by `ssdd_jax.settings.spec.TARGET_KINDS`."""


def make_student_step(
    *, learner: Learner, optimizer: optax.GradientTransformation, loss: Callable[..., Any] = mean_squared_error
) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build step(member, step, schedule "s b", images "n H W C", targets "n d") -> (member, metrics), one minibatch update.

    `schedule` is of `ssdd_jax.core.batching.batch_schedule`; images are normalized; `loss` is among `LOSSES`.
    """

    def step(member: MemberState, step_number, schedule, images, targets):
        rows = schedule[step_number]
        member, value = train_member(member, images[rows], targets[rows], learner, optimizer, loss)
        return member, {"loss": value}

    return step


def repr_error(predicted: Float[Array, "n d"], reprs: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the mean squared error divided by the variance of `reprs`: 0 is perfect, 1 is no better than their mean."""
    return jnp.mean((predicted - reprs) ** 2) / jnp.mean((reprs - reprs.mean(0, keepdims=True)) ** 2)
