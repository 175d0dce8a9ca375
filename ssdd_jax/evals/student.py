"""Student pretraining on a distilled set, by what its targets are, and how far a representation is from the teacher's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.diff_augment import diff_augment
from ssdd_jax.core.losses import label_loss, logit_loss
from ssdd_jax.core.pool import Learner, MemberState, half_squared_error, mean_squared_error, train_member
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import RecipeSpec

Augment = Callable[[PRNGKeyArray, Float[Array, "n H W C"]], Float[Array, "n H W C"]]


LOSSES: dict[str, Callable[..., Any]] = {"representation": mean_squared_error, "labels": label_loss, "logits": logit_loss}
"""(outputs, targets) -> what a student is trained on, by `ssdd_jax.settings.spec.TARGET_KINDS`."""


def student_loss(recipe: RecipeSpec, kind: str) -> Callable[..., Any]:
    """Return what a student is trained on: the loss that a recipe names, or that of its targets' kind."""
    return {"": LOSSES[kind], "squared_error": half_squared_error}[recipe.loss]


def make_augment(recipe: RecipeSpec) -> Augment | None:
    """Return (key, normalized images) -> images, as a recipe changes every batch; None if it does not."""
    if not recipe.augment:
        return None
    return partial(diff_augment, strategy=recipe.augment, siamese=False, align_corners=recipe.align_corners)


def make_student_update(
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Any] = mean_squared_error,
    augment: Augment | None = None,
) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build update(member, step, images "b H W C", targets "b d") -> (member, metrics), one update on a minibatch.

    Images are normalized; `loss` is of `student_loss`. With `augment`, of `make_augment`, the update takes a seed last, and what happens to
    the images is a function of seed and step.
    """

    def update(member: MemberState, step_number, images, targets, *seed):
        if augment is not None:
            # Steps are numbered from 1: the order of the batches is drawn at 0.
            images = augment(step_key(seed[0], Stream.STUDENT_STEP, step_number + 1), images)
        member, value = train_member(member, images, targets, learner, optimizer, loss)
        return member, {"loss": value}

    return update


def make_student_step(**settings: Any) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build step(member, step, schedule "s b", images "n H W C", targets "n d") -> (member, metrics), one minibatch update.

    `schedule` is of `ssdd_jax.core.batching.batch_schedule`; for the settings, and the seed that some make it take, see
    `make_student_update`.
    """
    update = make_student_update(**settings)

    def step(member: MemberState, step_number, schedule, images, targets, *seed):
        rows = schedule[step_number]
        return update(member, step_number, images[rows], targets[rows], *seed)

    return step


def repr_error(predicted: Float[Array, "n d"], reprs: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the mean squared error divided by the variance of `reprs`: 0 is perfect, 1 is no better than their mean."""
    return jnp.mean((predicted - reprs) ** 2) / jnp.mean((reprs - reprs.mean(0, keepdims=True)) ** 2)
