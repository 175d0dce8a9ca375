"""The interface of protocols, which read what students make of a labelled dataset: one file each, and one row of PROTOCOLS."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.pool import Learner

# Rows that pass a network together.
CHUNK = 512
# Bytes of features that are in memory at a time, where they lie on disk.
PART_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a network makes of a dataset: features "n q" for linear protocols, representations "n d" for neighbours.

    Those of the training images may be memory-mapped: take the rows that are needed, not all of them at once.
    """

    train_features: np.ndarray
    eval_features: np.ndarray
    train_reprs: np.ndarray
    eval_reprs: np.ndarray

    def standardised(self, allocate: Callable[..., np.ndarray] = np.empty) -> "Encoded":
        """Return features and representations, each centred and divided by one overall standard deviation, of the training images.

        Protocols have fixed learning rates and penalties, so that what they read must have one scale: an untrained network's is
        arbitrary, and a student's features grow as it trains. `allocate` makes an array of a shape and a dtype.
        """

        def pair(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            centre = (np.sum([rows.sum(0, dtype=np.float64) for _, rows in parts_of(train)], 0) / len(train)).astype(np.float32)
            squares = sum(float(np.sum((rows - centre) ** 2, dtype=np.float64)) for _, rows in parts_of(train))
            scale = np.float32(np.sqrt(squares / train.size) or 1.0)

            def moved(table: np.ndarray) -> np.ndarray:
                result = allocate(table.shape, np.float32)
                for place, rows in parts_of(table):
                    result[place] = (rows - centre) / scale
                return result

            return moved(train), moved(held_out)

        return Encoded(*pair(self.train_features, self.eval_features), *pair(self.train_reprs, self.eval_reprs))


def parts_of(table: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the rows of a table, `PART_BYTES` of them at a time, with their place."""
    size = max(1, PART_BYTES // max(1, table[:1].nbytes))
    for start in range(0, len(table), size):
        place = slice(start, min(start + size, len(table)))
        yield place, np.asarray(table[place])


@dataclass(frozen=True, eq=False)
class Trainable:
    """Students as networks, for protocols that train them further.

    Attributes:
        variables: pretrained, those of every seed.
        make_learner: number of outputs -> the student's network with as many.
        train_images: uint8 "n H W C", in memory or on disk.
        eval_images: likewise "t H W C".
        normalize: of uint8 images, or images in [0, 1]; works under jit.
    """

    variables: Sequence[Any]
    make_learner: Callable[[int], Learner]
    train_images: Any
    eval_images: Any
    normalize: Callable[[jax.Array], jax.Array]


@dataclass(frozen=True, eq=False)
class Readout:
    """What a protocol reads: one dataset, and what the networks of several seeds make of it.

    Attributes:
        seeds: one per network.
        encoded: likewise, standardised.
        train_labels: int32 "n".
        eval_labels: int32 "t".
        num_classes: k.
        networks: students of the same seeds; None where there are none that could be trained, such as the teacher's.
    """

    seeds: Sequence[int]
    encoded: Sequence[Encoded]
    train_labels: np.ndarray
    eval_labels: np.ndarray
    num_classes: int
    networks: Trainable | None = None


# eq=False: it is hashed by its identity, since what is compiled is kept for it.
@dataclass(frozen=True, eq=False)
class Steps:
    """What `Tools.train` runs, written for one seed.

    Attributes:
        step: (state, step number, *args) -> (state, metrics with "loss"); with `draw`, (state, step number, batch, *args).
        draw: (step number, *args) -> a tuple of integer arrays: the rows of each table that make the batch.
        watch: state -> what of it must stay finite.
        causes: what to do where a metric does not stay finite, by its name.
    """

    step: Callable[..., tuple[Any, dict[str, Any]]]
    draw: Callable[..., tuple[Any, ...]] | None = None
    watch: Callable[[Any], Any] = lambda state: state
    causes: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tools:
    """What a protocol computes with. This is the plain one; a run's has its progress bar, its checkpoints and what is on disk."""

    kept: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return make(), kept under a key for readouts of the same students and dataset, so that it is compiled once for all sets."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def train(
        self,
        steps: Steps,
        states: Sequence[Any],
        num_steps: int,
        args: Sequence[tuple[Any, ...]],
        *,
        name: str,
        tables: Sequence[Any] = (),
        resume: bool = False,
    ) -> list[Any]:
        """Run `num_steps` steps from the state of every seed, and return the last states.

        Args:
            steps: kept with `once`, since it is jitted.
            states: one per seed, of equal shapes.
            num_steps: from 0 on.
            args: of `steps`, one tuple of arrays per seed.
            name: what trains, for displays and checkpoints.
            tables: what `steps.draw` draws rows of; the same for all seeds.
            resume: whether it takes so long that a run keeps checkpoints.
        """
        step, last = self.once(steps, lambda: jax.jit(steps.step)), []
        for state, own in zip(states, jax.tree.map(jnp.asarray, list(args)), strict=True):
            for number in range(num_steps):
                rows = () if steps.draw is None else steps.draw(number, *own)
                batch = () if steps.draw is None else (tuple(jnp.asarray(t[np.asarray(r)]) for t, r in zip(tables, rows, strict=True)),)
                state, _ = step(state, number, *batch, *own)
            last.append(state)
        return last

    def apply(self, fn: Callable[[jax.Array], Any], rows: Any) -> Any:
        """Return a jitted function's values for all rows, some rows at a time."""
        parts = [fn(jnp.asarray(rows[start : start + CHUNK])) for start in range(0, len(rows), CHUNK)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class Protocol(NamedTuple):
    """A protocol.

    Attributes:
        spec: frozen dataclass of its settings, all with defaults; a field's metadata may have "range", "choices" and "smoke".
        version: counted up whenever other code gives other scores: rows of an older version are recomputed.
        columns: spec -> the title of every score's column, by the score's name, which no other protocol uses.
        definition: what the scores are, for the report; it goes on after "accuracies in percent:" and has no full stop.
        run: (spec, readout, tools) -> by the score's name one accuracy in [0, 1] per seed.
        trains: whether it needs `Readout.networks`; it is not run where there are none.
    """

    spec: type
    version: int
    columns: Callable[[Any], dict[str, str]]
    definition: str
    run: Callable[[Any, Readout, Tools], dict[str, list[float]]]
    trains: bool = False
