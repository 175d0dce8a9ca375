"""Losses besides the squared error: cross-entropies of a network of classes, and errors of predicted representations."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def label_loss(outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return the mean cross-entropy of the classes; a row's class is the place of its largest target, one-hot or centred."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.argmax(targets, -1)).mean()


def logit_loss(outputs: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """Return the mean cross-entropy against softmax(targets), at temperature 1."""
    return optax.softmax_cross_entropy(outputs, jax.nn.softmax(targets)).mean()


def whitened_error(outputs: Float[Array, "n d"], targets: Float[Array, "n d"], factor: Float[Array, "d r"]) -> Float[Array, ""]:
    """Return the mean square of the error times `factor`, whose columns are directions divided by how much targets vary along them."""
    return jnp.mean(jnp.matmul(outputs - targets, factor, precision=jax.lax.Precision.HIGHEST) ** 2)


def nearness_loss(
    outputs: Float[Array, "n d"], targets: Float[Array, "n d"], centres: Float[Array, "k d"], temperature: Float[Array, ""]
) -> Float[Array, ""]:
    """Return the mean divergence KL(q || p) of softmaxes over centres: of -|c - target|^2 / temperature and -|c - output|^2 / temperature.

    It is the cross-entropy less what no output can go below, so that it is 0 where outputs equal targets.
    """
    logits = lambda rows: nearness(rows, centres) / temperature
    return jnp.mean(optax.kl_divergence(jax.nn.log_softmax(logits(outputs)), jax.nn.softmax(logits(targets))))


def nearness(rows: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Return -|c - row|^2 without |row|^2, which all centres share and a softmax over them does not see."""
    return 2 * jnp.matmul(rows, centres.T, precision=jax.lax.Precision.HIGHEST) - jnp.sum(centres**2, -1)[None]
