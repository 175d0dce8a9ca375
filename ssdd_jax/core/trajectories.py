"""Trajectory matching (Cazenavette et al., 2022): steps on a small set that lead where a network's training on all images led.

A network's parameters are one vector here, over which all norms and distances are taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Params = Float[Array, " p"]


def gsam_direction(gradient: Callable[[Params], Params], params: Params, here: Params, *, rho: float, alpha: float) -> Params:
    """Return the direction that GSAM (Zhuang et al., 2022), made adaptive, subtracts from the parameters p.

    With g = `here` the gradient at p, e = p^2 g rho / |abs(p) g| and g' the gradient at p + e: g' - alpha v, where v is the part of g
    that is orthogonal to g'. All norms are over the complete vector; with rho = 0 it is g, whatever alpha.

    Args:
        gradient: parameters "p" -> gradient "p", of the same batch at all parameters.
        params: p.
        here: gradient(p).
        rho: length of the ascent, relative to the parameters; at least 0.
        alpha: weight of v.
    """
    scale = rho / (jnp.linalg.norm(params * here) + 1e-12)
    there = gradient(params + params**2 * here * scale)
    here_norm, there_norm = jnp.linalg.norm(here), jnp.linalg.norm(there)
    cosine = jnp.vdot(here, there) / (here_norm * there_norm + 1e-12)
    orthogonal = here - cosine * here_norm * there / (there_norm + 1e-12)
    return there - alpha * orthogonal


def trajectory_loss(
    images: Float[Array, "m *image"],
    labels: Float[Array, "m k"],
    rate: Float[Array, ""],
    start: Params,
    target: Params,
    rows: Int[Array, "s b"],
    keys: Array,
    *,
    apply: Callable[[Params, Array], Array],
    loss: Callable[[Array, Array], Array],
    augment: Callable[[Array, Array], Array],
) -> Float[Array, ""]:
    """Return how far s steps of SGD on a set end from where an expert ended, relative to how far the expert went.

    |theta_s - target|^2 / |start - target|^2 with theta_0 = start and theta_(n+1) = theta_n - rate d loss / d theta_n on batch n. It is 1
    where nothing moves. Differentiable with respect to images, labels and rate; for that, a step's activations are recomputed, not kept.

    Args:
        images: the set's images "m ...".
        labels: their targets "m k".
        rate: learning rate of the steps; any number.
        start: an expert's parameters after some epoch.
        target: its parameters some epochs later, others than `start`.
        rows: the images of every step's batch, in [0, m).
        keys: a key for each step.
        apply: (parameters, images "b ...") -> outputs "b k".
        loss: (outputs, targets "b k") -> a scalar.
        augment: (key, images "b ...") -> images of the same shape.
    """

    def step(params: Params, drawn: tuple[Array, Array]) -> tuple[Params, None]:
        index, key = drawn
        batch, targets = augment(key, images[index]), labels[index]
        return params - rate * jax.grad(lambda params: loss(apply(params, batch), targets))(params), None

    end, _ = jax.lax.scan(jax.checkpoint(step), start, (rows, keys))
    # In one sum, so that equal numbers have equal sums.
    squares = jnp.sum((jnp.stack([end, start]) - target[None]) ** 2, 1)
    return squares[0] / squares[1]


def start_limit(number: int | Int[Array, ""], first: int, last: int, steps: int) -> int | Int[Array, ""]:
    """Return the epoch before which a step starts: it grows from `first` to `last` in `steps` steps; without any it is `last`."""
    return jnp.minimum(last, first + (last - first) * number // steps) if steps else last
