"""k-nearest neighbours: a training-free readout of a representation."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssdd_jax.evals.protocol import Protocol, Readout, Tools, parts_of
from ssdd_jax.settings.evaluation import KnnSpec


def nearest(
    train: Float[Array, "n q"], labels: Int[Array, " n"], queries: Float[Array, "t q"], *, num_neighbors: int
) -> tuple[Float[Array, "t k"], Int[Array, "t k"]]:
    """Return the cosines of every query to its nearest rows, and their labels; k is at most n."""
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    similarities = jnp.matmul(unit(queries), unit(train).T, precision=jax.lax.Precision.HIGHEST)
    cosines, neighbors = jax.lax.top_k(similarities, min(num_neighbors, len(train)))
    return cosines, labels[neighbors]


def vote(cosines: Float[Array, "t k"], labels: Int[Array, "t k"], *, num_classes: int, temperature: float) -> Int[Array, " t"]:
    """Return the class for which the neighbours of every query vote, each weighted by exp(cosine / temperature)."""
    # Relative to the nearest, so that no weight overflows. Its maximum, not its first column: on CPUs XLA takes a slice of
    # top_k for a reason to sort all n, forty times slower.
    weights = jnp.exp((cosines - cosines.max(1, keepdims=True)) / temperature)
    votes = jnp.einsum("tk,tkc->tc", weights, jax.nn.one_hot(labels, num_classes))
    return jnp.argmax(votes, -1)


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
    return vote(*nearest(train, labels, queries, num_neighbors=num_neighbors), num_classes=num_classes, temperature=temperature)


_nearest = jax.jit(nearest, static_argnames="num_neighbors")
_vote = jax.jit(vote, static_argnames=("num_classes", "temperature"))


def run(spec: KnnSpec, readout: Readout, tools: Tools) -> dict[str, list[float]]:
    """Return the accuracy of every seed's vote."""
    scores, settings = [], dict(num_classes=readout.num_classes, temperature=spec.temperature)
    for encoded in readout.encoded:
        # The nearest of some training rows at a time, and then the nearest of these.
        found = []
        for place, rows in parts_of(encoded.train_reprs):
            train, labels = jnp.asarray(rows), jnp.asarray(readout.train_labels[place])
            find = lambda queries, train=train, labels=labels: _nearest(train, labels, queries, num_neighbors=spec.neighbors)
            found.append(tools.apply(find, encoded.eval_reprs))
        candidates = [np.concatenate(part, 1) for part in zip(*found, strict=True)]
        order = np.argsort(-candidates[0], axis=1, kind="stable")[:, : spec.neighbors]
        cosines, of_them = (jnp.asarray(np.take_along_axis(part, order, 1)) for part in candidates)
        elect = lambda rows, cosines=cosines, of_them=of_them: _vote(cosines[rows], of_them[rows], **settings)
        predicted = tools.apply(elect, np.arange(len(order)))
        scores.append(float(np.mean(predicted == readout.eval_labels)))
    return {"knn": scores}


PROTOCOL = Protocol(
    spec=KnnSpec,
    version=2,
    columns=lambda spec: {"knn": "k-NN"},
    definition="the vote of the nearest neighbours in the student's representation",
    run=run,
)
