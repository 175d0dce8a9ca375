"""Fine-tuning: the whole pretrained network with all labels (KRR-ST's transfer protocol)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.augment import AugmentSpec, augment
from ssdd_jax.core.pool import Learner, MemberState
from ssdd_jax.evals.probe import accuracy
from ssdd_jax.nets.layers import HEAD
from ssdd_jax.rng import Stream, step_key


def init_finetuning(key: PRNGKeyArray, pretrained: Any, learner: Learner, optimizer: optax.GradientTransformation) -> MemberState:
    """Return a pretrained backbone under a fresh head; `learner` has one output a class."""
    params = {**pretrained["params"], HEAD: learner.init(key)["params"][HEAD]}
    variables = {"params": params, "batch_stats": pretrained["batch_stats"]}
    return MemberState(variables=variables, opt_state=optimizer.init(params), age=jnp.zeros((), jnp.int32))


def make_finetune_step(
    *,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    view: AugmentSpec,
    normalize: Callable[[Float[Array, "n H W C"]], Float[Array, "n H W C"]],
) -> Callable[..., tuple[MemberState, dict[str, Array]]]:
    """Build step(member, step, seed, images "b H W C" uint8, labels "b") -> (member, metrics), one minibatch update.

    Images are augmented by `view` in [0, 1], then normalized.
    """

    def step(member: MemberState, step_number, seed, images, labels):
        # Steps are numbered from 1: the order of the batches is drawn at 0.
        batch = augment(step_key(seed, Stream.FINETUNE_STEP, step_number + 1), images.astype(jnp.float32) / 255.0, view)
        variables = member.variables

        def loss_fn(params):
            logits, batch_stats = learner.apply_train({**variables, "params": params}, normalize(batch))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (batch_stats, accuracy(logits, labels))

        (loss, (batch_stats, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, member.opt_state, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats}
        return MemberState(variables=variables, opt_state=opt_state, age=member.age + 1), {"loss": loss, "accuracy": correct}

    return step
