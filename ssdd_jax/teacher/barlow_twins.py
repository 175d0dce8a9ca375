"""Barlow Twins pretraining (Zbontar et al., 2021), with the conventions of solo-learn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.augment import AugmentSpec, augment
from ssdd_jax.core.pool import Learner
from ssdd_jax.evals.probe import ProbeState, train_probe
from ssdd_jax.nets.layers import BatchNorm, Linear


class Projector(nn.Module):
    """Perceptron on the representation, all layers equally wide: hidden ones with batch norm and ReLU, the last one plain."""

    width: int
    num_hidden: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], train: bool = True) -> Float[Array, "n z"]:
        for _ in range(self.num_hidden):
            x = nn.relu(BatchNorm()(Linear(self.width)(x), train))
        return Linear(self.width)(x)


@struct.dataclass
class TeacherState:
    """Encoder variables, projector variables, the optimizer's state, and the online probe (None without labels)."""

    encoder: Any
    projector: Any
    opt_state: Any
    probe: ProbeState | None = None


def barlow_twins_loss(
    z1: Float[Array, "n z"], z2: Float[Array, "n z"], *, off_diagonal: float = 0.0051, scale: float = 0.1
) -> Float[Array, ""]:
    """Return scale * (sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2), C the cross-correlation of the embeddings.

    Embeddings are standardised over the batch with eps 1e-5 inside the root, as in a batch norm without an affine part.
    """
    standardise = lambda z: (z - z.mean(0, keepdims=True)) * jax.lax.rsqrt(z.var(0, keepdims=True) + 1e-5)
    correlation = standardise(z1).T @ standardise(z2) / len(z1)
    diagonal = jnp.diagonal(correlation)
    return scale * (jnp.sum((diagonal - 1) ** 2) + off_diagonal * (jnp.sum(correlation**2) - jnp.sum(diagonal**2)))


def init_teacher(
    key: PRNGKeyArray,
    encoder: Learner,
    projector: Projector,
    repr_width: int,
    optimizer: optax.GradientTransformation,
    probe: ProbeState | None = None,
) -> TeacherState:
    """Return the state before the first step; `probe` comes from `ssdd_jax.evals.probe.init_probe`."""
    encoder_key, projector_key = jax.random.split(key)
    encoder_variables = encoder.init(encoder_key)
    # A projector without hidden layers has no batch statistics, but the step returns them anyway.
    projector_variables = {"batch_stats": {}, **projector.init(projector_key, jnp.zeros((2, repr_width)))}
    params = {"encoder": encoder_variables["params"], "projector": projector_variables["params"]}
    return TeacherState(encoder=encoder_variables, projector=projector_variables, opt_state=optimizer.init(params), probe=probe)


def make_teacher_step(
    *,
    encoder: Learner,
    projector: Projector,
    optimizer: optax.GradientTransformation,
    views: tuple[AugmentSpec, AugmentSpec],
    normalize: Callable[[Float[Array, "n H W C"]], Float[Array, "n H W C"]],
    off_diagonal: float = 0.0051,
    scale: float = 0.1,
    probe_optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., tuple[TeacherState, dict[str, Array]]]:
    """Build step(state, images "n H W C" in [0, 1], key, labels "n" = None) -> (state, metrics): pure, not yet jitted.

    Given a probe in the state, its `probe_optimizer` and labels, the probe takes a step on the representations that the
    loss has just used, and its accuracy is among the metrics. Labels never reach the encoder.
    """

    def step(state: TeacherState, images, key, labels=None):
        inputs = [normalize(augment(k, images, view)) for k, view in zip(jax.random.split(key), views, strict=True)]

        def loss_fn(params):
            encoder_stats, projector_stats = state.encoder["batch_stats"], state.projector.get("batch_stats", {})
            embeddings, representations = [], []
            # The two views pass through one after the other, each with its own batch statistics.
            for view in inputs:
                reprs, encoder_stats = encoder.apply_train({"params": params["encoder"], "batch_stats": encoder_stats}, view)
                variables = {"params": params["projector"], "batch_stats": projector_stats}
                z, updated = projector.apply(variables, reprs, mutable=["batch_stats"])
                projector_stats = updated.get("batch_stats", {})
                embeddings.append(z)
                representations.append(reprs)
            loss = barlow_twins_loss(*embeddings, off_diagonal=off_diagonal, scale=scale)
            return loss, (encoder_stats, projector_stats, jnp.concatenate(representations))

        params: Any = {"encoder": state.encoder["params"], "projector": state.projector["params"]}
        (loss, (encoder_stats, projector_stats, reprs)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params, probe = optax.apply_updates(params, updates), state.probe
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if probe is not None and labels is not None:
            probe, seen = train_probe(probe, jax.lax.stop_gradient(reprs), jnp.tile(labels, 2), probe_optimizer)
            metrics["probe_accuracy"] = seen["accuracy"]
        new_state = TeacherState(
            encoder={"params": params["encoder"], "batch_stats": encoder_stats},
            projector={"params": params["projector"], "batch_stats": projector_stats},
            opt_state=opt_state,
            probe=probe,
        )
        return new_state, metrics

    return step
