"""What real and distilled images are matched in: a network's gradients (DC, DSA), or its mean features (DM, IDM)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Apply = Callable[[Any, Float[Array, "n *row"]], Float[Array, "n k"]]
"""(parameters, images) -> logits."""

EPS = 1e-6
"""Added to the product of two norms: gradients far below its root match nothing, whatever their direction (DC)."""


def class_loss(
    apply: Apply, params: Any, images: Float[Array, "n *row"], label: Int[Array, ""], weights: Float[Array, " n"] | None = None
) -> Float[Array, ""]:
    """Return the mean cross-entropy of images of one class; of those whose weight is 1, if there are `weights` of 0 and 1."""
    logits = apply(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(label, logits.shape[:1]))
    return jnp.mean(losses) if weights is None else jnp.sum(weights * losses) / jnp.sum(weights)


def gradient_distance(real: Any, synthetic: Any) -> Float[Array, ""]:
    """Return the sum of 1 - cosine over the rows of two gradients (Zhao and Bilen, 2021).

    A row is the gradient of all weights of one output of a layer; outputs are the last axis, as in flax. Biases and the weights of norms
    have no rows and count nothing.

    Args:
        real: gradients by parameter, a pytree; usually without gradients of their own.
        synthetic: the same.
    """
    pairs = zip(jax.tree.leaves(real), jax.tree.leaves(synthetic), strict=True)
    return sum((_row_distances(a, b).sum() for a, b in pairs if a.ndim > 1), jnp.zeros(()))


def _row_distances(real: Array, synthetic: Array) -> Float[Array, " o"]:
    real, synthetic = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (real, synthetic))
    return 1 - jnp.sum(real * synthetic, 0) / (_norms(real) * _norms(synthetic) + EPS)


def _norms(rows: Float[Array, "p o"]) -> Float[Array, " o"]:
    """Return the norms of columns, whose gradient is 0, not NaN, where they are 0."""
    squares = jnp.sum(rows**2, 0)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def class_gradient_distance(
    apply: Apply,
    params: Any,
    real: Float[Array, "b *row"],
    synthetic: Float[Array, "c *row"],
    label: Int[Array, ""],
    weights: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Return `gradient_distance` of a class's loss on real and on distilled images; the gradient reaches the latter alone.

    Args:
        apply: a network that normalizes nothing over a batch.
        params: its parameters.
        real: images of the class, normalized and augmented.
        synthetic: distilled images of the class, likewise.
        label: the class.
        weights: 0 for real images that are none, see `ssdd_jax.methods.class_rows.ClassRows`; 1 for the others.
    """
    gradient = jax.grad(class_loss, argnums=1)
    wanted = jax.lax.stop_gradient(gradient(apply, params, real, label, weights))
    return gradient_distance(wanted, gradient(apply, params, synthetic, label))


def mean_distance(real: Float[Array, "b q"], synthetic: Float[Array, "c q"], weights: Float[Array, " b"] | None = None) -> Float[Array, ""]:
    """Return |mean(real) - mean(synthetic)|^2, summed over features; the gradient reaches the latter alone (DM; `weights` as above)."""
    wanted = jnp.mean(real, 0) if weights is None else weights @ real / jnp.sum(weights)
    return jnp.sum((jax.lax.stop_gradient(wanted) - jnp.mean(synthetic, 0)) ** 2)
