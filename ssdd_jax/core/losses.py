"""What a network of classes is trained on: cross-entropies of its outputs, by the kind of its targets."""

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
