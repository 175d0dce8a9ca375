"""A linear classifier on features, and what else several protocols share: accuracies, and subsets of the labels."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray


@struct.dataclass
class ProbeState:
    """Weight "q k", bias "k" and the optimizer's state."""

    params: dict[str, Array]
    opt_state: Any


def init_probe(key: PRNGKeyArray, width: int, num_classes: int, optimizer: optax.GradientTransformation) -> ProbeState:
    """Return a probe initialised like PyTorch's linear layer."""
    params = _linear_layer(key, width, num_classes)
    return ProbeState(params=params, opt_state=optimizer.init(params))


@partial(jax.jit, static_argnums=(1, 2))
def _linear_layer(key: PRNGKeyArray, width: int, num_classes: int) -> dict[str, Array]:
    weight_key, bias_key = jax.random.split(key)
    limit = width**-0.5
    return {
        "weight": jax.random.uniform(weight_key, (width, num_classes), minval=-limit, maxval=limit),
        "bias": jax.random.uniform(bias_key, (num_classes,), minval=-limit, maxval=limit),
    }


def probe_logits(params: dict[str, Array], features: Float[Array, "n q"]) -> Float[Array, "n k"]:
    """Return the class scores."""
    # In full precision also where float32 products are rounded by default: L-BFGS measures small differences.
    return jnp.matmul(features, params["weight"], precision=jax.lax.Precision.HIGHEST) + params["bias"][None]


def train_probe(
    state: ProbeState, features: Float[Array, "n q"], labels: Int[Array, " n"], optimizer: optax.GradientTransformation
) -> tuple[ProbeState, dict[str, Array]]:
    """Do one step on the cross-entropy; return the probe, its loss and its accuracy before the step."""

    def loss_fn(params):
        logits = probe_logits(params, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = ProbeState(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
    return state, {"loss": loss, "accuracy": accuracy(logits, labels)}


def accuracy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Return the share of rows whose largest score is the label's, in [0, 1]."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def probe_accuracies(probes: Sequence[ProbeState], features: Sequence[np.ndarray], labels: np.ndarray) -> list[float]:
    """Return the accuracy of every seed's classifier on its own features "t q" of the same images, whose labels are "t"."""
    wanted = jnp.asarray(labels)
    return [float(accuracy(probe_logits(probe.params, jnp.asarray(f)), wanted)) for probe, f in zip(probes, features, strict=True)]


def label_subset(key: PRNGKeyArray, labels: np.ndarray, fraction: float, min_per_class: int) -> np.ndarray:
    """Draw a class-balanced few-label subset: `fraction` of every class, at least `min_per_class` (or all there are).

    Returns:
        Sorted row numbers.
    """
    scores = np.asarray(jax.random.uniform(key, labels.shape))
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(len(rows), max(min_per_class, round(fraction * len(rows))))
        chosen.append(rows[np.argsort(scores[rows], kind="stable")[:count]])
    return np.sort(np.concatenate(chosen))
