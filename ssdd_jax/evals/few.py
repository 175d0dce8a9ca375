"""The few-label probe: regularised logistic regression, solved by L-BFGS."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ssdd_jax.evals.probe import ProbeState, label_subset, probe_accuracies, probe_logits
from ssdd_jax.evals.protocol import Protocol, Readout, Steps, Tools
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import FewSpec


def few_label_loss(params: dict[str, Array], features: Float[Array, "n q"], labels: Int[Array, " n"], l2: float) -> Float[Array, ""]:
    """Return the cross-entropy plus l2 / 2 |weight|^2 (MKDT regularises the weight and not the bias).

    It is convex with one minimum, so the protocol depends on no optimizer setting once that is reached.
    """
    entropy = optax.softmax_cross_entropy_with_integer_labels(probe_logits(params, features), labels).mean()
    return entropy + 0.5 * l2 * jnp.sum(params["weight"] ** 2)


def init_few_label_probe(width: int, num_classes: int) -> ProbeState:
    """Return the start, all zeros."""
    params = {"weight": jnp.zeros((width, num_classes)), "bias": jnp.zeros((num_classes,))}
    return ProbeState(params=params, opt_state=optax.lbfgs().init(params))


def make_few_label_step(*, l2: float) -> Callable[..., tuple[ProbeState, dict[str, Any]]]:
    """Build step(state, step, features "n q", labels "n") -> (state, metrics), one L-BFGS iteration on all rows."""
    optimizer = optax.lbfgs()

    def step(state: ProbeState, step_number, features, labels):
        del step_number
        value_fn = lambda params: few_label_loss(params, features, labels, l2)
        value, grads = jax.value_and_grad(value_fn)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value, grad=grads, value_fn=value_fn)
        params = optax.apply_updates(state.params, updates)
        # At the minimum no step makes progress, and the line search may return one that is worse or not a number.
        better = value_fn(params) <= value
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), ProbeState(params=params, opt_state=opt_state), state)
        return kept, {"loss": value, "grad_norm": optax.tree.norm(grads)}

    return step


def score_name(fraction: float) -> str:
    """Return the name of the score with a share of the labels."""
    return f"few_{100 * fraction:g}"


def run(spec: FewSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's probe with each share of the labels."""
    # L-BFGS keeps an infinity for what it has not tried yet.
    steps = tools.once("few", lambda: Steps(make_few_label_step(l2=spec.l2), watch=lambda state: state.params))
    labels, width, scores = readout.train_labels, readout.encoded[0].train_features.shape[1], {}
    for fraction in spec.fractions:
        rows = [label_subset(step_key(seed, Stream.LABEL_SUBSET), labels, fraction, spec.per_class) for seed in readout.seeds]
        args = [(e.train_features[r], labels[r]) for e, r in zip(readout.encoded, rows, strict=True)]
        probes = [init_few_label_probe(width, readout.num_classes)] * len(rows)
        probes = tools.train(steps, probes, spec.steps, args, name="few-label probe")
        scores[score_name(fraction)] = probe_accuracies(probes, [e.eval_features for e in readout.encoded], readout.eval_labels)
    return scores


PROTOCOL = Protocol(
    spec=FewSpec,
    version=2,
    columns=lambda spec: {score_name(fraction): f"{100 * fraction:g} % of labels" for fraction in sorted(spec.fractions)},
    definition="a linear probe fitted with a share of the training labels",
    run=run,
)
