"""Optimizers from settings."""

import optax

from ssdd_jax.settings.evaluation import RecipeSpec
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.spec import PoolSpec, RunSpec


def sgd(spec: PoolSpec | RecipeSpec, schedule: optax.Schedule | None = None) -> optax.GradientTransformation:
    """Return SGD with momentum and with weight decay added to the gradient of every parameter, as in PyTorch."""
    return optax.chain(optax.add_decayed_weights(spec.weight_decay), optax.sgd(schedule or spec.learning_rate, spec.momentum))


def student_optimizer(spec: RecipeSpec, updates: int, updates_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a student's pretraining, whose schedule takes `updates` updates."""
    warmup = min(spec.warmup_epochs * updates_per_epoch, max(updates - 1, 0))
    if spec.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else spec.learning_rate, spec.learning_rate, warmup, max(updates, 1))
    else:
        schedule = (
            optax.warmup_constant_schedule(0.0, spec.learning_rate, warmup) if warmup else optax.constant_schedule(spec.learning_rate)
        )
    if spec.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=spec.weight_decay)
    return sgd(spec, schedule)


def outer_optimizer(spec: RunSpec, method: RegressionSpec, start: int = 0) -> optax.GradientTransformation:
    """Return AdamW with the linear schedule of the outer loop, from its step `start` on."""
    steps = num_steps(spec, method)
    linear = optax.linear_schedule(method.learning_rate, method.learning_rate * spec.outer.final_rate, max(steps, 1))
    return optax.adamw(lambda count: linear(count + start), spec.outer.b1, spec.outer.b2, weight_decay=spec.outer.weight_decay)


def num_steps(spec: RunSpec, method: RegressionSpec) -> int:
    """Return the number of outer steps of a method."""
    return spec.outer.steps if method.steps < 0 else method.steps
