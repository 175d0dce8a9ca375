"""Linear evaluation: a linear classifier on frozen features, trained as KRR-ST does (SGD, cosine to zero, cross-entropy)."""

import optax

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.evals.probe import init_probe, probe_accuracies, train_probe
from ssdd_jax.evals.protocol import Protocol, Readout, Steps, Tools
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import LinearSpec


def probe_steps(optimizer: optax.GradientTransformation) -> Steps:
    """Return the updates of a probe, each on one minibatch of the tables features "n q" and labels "n".

    Their one argument is the schedule, of `ssdd_jax.core.batching.batch_schedule`.
    """
    return Steps(
        step=lambda state, step_number, batch, schedule: train_probe(state, batch[0], batch[1], optimizer),
        draw=lambda step_number, schedule: (schedule[step_number],) * 2,
    )


def run(spec: LinearSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's probe with all labels."""
    num_rows, width = readout.encoded[0].train_features.shape
    optimizer = optax.sgd(optax.cosine_decay_schedule(spec.learning_rate, spec.steps), 0.9)
    steps = tools.once("linear", lambda: probe_steps(optimizer))
    probes = []
    # One seed after the other: each has features of its own, which may not fit into memory together.
    for seed, encoded in zip(readout.seeds, readout.encoded, strict=True):
        start = init_probe(step_key(seed, Stream.PROBE_INIT), width, readout.num_classes, optimizer)
        schedule = batch_schedule(step_key(seed, Stream.PROBE_STEP), num_rows, spec.batch_size, spec.steps)
        tables = (encoded.train_features, readout.train_labels)
        probes += tools.train(steps, [start], spec.steps, [(schedule,)], name="probe", tables=tables)
    return {"linear": probe_accuracies(probes, [e.eval_features for e in readout.encoded], readout.eval_labels)}


PROTOCOL = Protocol(
    spec=LinearSpec,
    version=2,
    columns=lambda spec: {"linear": "linear probe"},
    definition="a linear probe on the frozen features fitted with all training labels",
    run=run,
)
