"""k-nearest neighbours: a training-free readout of a representation."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssdd_jax.evals.protocol import Protocol, Readout, Tools
from ssdd_jax.settings.evaluation import KnnSpec


def knn_predict(
    train: Float[Array, "n q"],
    labels: Int[Array, " n"],
    queries: Float[Array, "t q"],
    *,
    num_classes: int,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> Int[Array, " t"]:
    """Return the class of every query by a vote of its nearest neighbours, each weighted by exp(cosine / temperature).

    The protocol of Wu et al. (2018) that solo-learn reports.
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similarities = jnp.matmul(unit(queries), unit(train).T, precision=jax.lax.Precision.HIGHEST)
    cosines, neighbors = jax.lax.top_k(similarities, min(num_neighbors, len(train)))
    # Relative to the nearest, so that no weight overflows. Its maximum, not its first column: on CPUs XLA takes a slice of
    # top_k for a reason to sort all n, forty times slower.
    weights = jnp.exp((cosines - cosines.max(1, keepdims=True)) / temperature)
    votes = jnp.einsum("tk,tkc->tc", weights, jax.nn.one_hot(labels[neighbors], num_classes))
    return jnp.argmax(votes, -1)


vote = jax.jit(knn_predict, static_argnames=("num_classes", "num_neighbors", "temperature"))


def run(spec: KnnSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's vote."""
    labels, scores = jnp.asarray(readout.train_labels), []
    settings = dict(num_classes=readout.num_classes, num_neighbors=spec.neighbors, temperature=spec.temperature)
    for encoded in readout.encoded:
        train = jnp.asarray(encoded.train_reprs)
        predicted = tools.apply(lambda queries, train=train: vote(train, labels, queries, **settings), encoded.eval_reprs)
        scores.append(float(np.mean(predicted == readout.eval_labels)))
    return {"knn": scores}


PROTOCOL = Protocol(
    spec=KnnSpec,
    version=2,
    columns=lambda spec: {"knn": "k-NN"},
    definition="the vote of the nearest neighbours in the student's representation",
    run=run,
)
