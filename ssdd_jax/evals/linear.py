"""Linear evaluation: a linear classifier on frozen features, trained as KRR-ST does (SGD, cosine to zero, cross-entropy)."""

from collections.abc import Callable

import optax
from jaxtyping import Array

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.evals.probe import ProbeState, init_probe, probe_accuracies, train_probe
from ssdd_jax.evals.protocol import Protocol, Readout, Steps, Tools
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import LinearSpec


def make_probe_step(*, optimizer: optax.GradientTransformation) -> Callable[..., tuple[ProbeState, dict[str, Array]]]:
    """Build step(state, step, schedule "s b", features "n q", labels "n") -> (state, metrics), one minibatch update.

    `schedule` is of `ssdd_jax.core.batching.batch_schedule`.
    """

    def step(state: ProbeState, step_number, schedule, features, labels):
        rows = schedule[step_number]
        return train_probe(state, features[rows], labels[rows], optimizer)

    return step


def run(spec: LinearSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's probe with all labels."""
    num_rows, width = readout.encoded[0].train_features.shape
    optimizer = optax.sgd(optax.cosine_decay_schedule(spec.learning_rate, spec.steps), 0.9)
    steps = tools.once("linear", lambda: Steps(make_probe_step(optimizer=optimizer)))
    probes = [init_probe(step_key(seed, Stream.PROBE_INIT), width, readout.num_classes, optimizer) for seed in readout.seeds]
    schedule = lambda seed: batch_schedule(step_key(seed, Stream.PROBE_STEP), num_rows, spec.batch_size, spec.steps)
    args = [(schedule(seed), e.train_features, readout.train_labels) for seed, e in zip(readout.seeds, readout.encoded, strict=True)]
    probes = tools.train(steps, probes, spec.steps, args, name="probe")
    return {"linear": probe_accuracies(probes, [e.eval_features for e in readout.encoded], readout.eval_labels)}


PROTOCOL = Protocol(
    spec=LinearSpec,
    version=2,
    columns=lambda spec: {"linear": "linear probe"},
    definition="a linear probe on the frozen features fitted with all training labels",
    run=run,
)
