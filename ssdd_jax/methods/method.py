"""The interface of a method: what it stores, and the phases in which it moves a distilled set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ssdd_jax.core.bases import PCA
from ssdd_jax.core.distilled import DistilledSet
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.real import RealImages
from ssdd_jax.core.sharding import Shard
from ssdd_jax.errors import InputError
from ssdd_jax.methods.plan import Plan, Sizes
from ssdd_jax.settings.methods import ExpertSpec
from ssdd_jax.settings.spec import RunSpec

TEACHER, LABELS = "teacher", "labels"
"""What a method may need."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a method is given; whatever is expensive is a function that computes it on first use.

    Attributes:
        name: name of the method's section, config.methods.NAME, for messages.
        run: settings that methods share.
        num_train: number of training images.
        image_shape: (H, W, C).
        num_classes: number of classes; 0 without labels.
        labels: labels of the training images, int32 "n", or None; for methods that need them.
        normalize: uint8 images, or float images in [0, 1] -> images in the student's normalized space; works under jit.
        images: rows of training images, integers "k" -> normalized images "k H W C".
        learners: networks of the pool's members by label, with as many outputs as the teacher's representation is wide.
        real: how real images enter a step.
        view_reprs: (rows of training images, integers "k"; names of A views) -> the teacher's representations "A k d" of the images under
            them; a NumPy array.
        train_reprs: () -> the teacher's representations "n d" of all training images, memory-mapped.
        represent_in_step: (teacher's variables, images "b H W C") -> representations, for use inside a jitted step.
        teacher_variables: () -> the variables that `represent_in_step` takes.
        image_pca: (base shape, number of components) -> principal components of flattened training images of that size.
        repr_pca: number of components -> principal components of the representations.
        experts: settings -> the parameters of trained networks after every epoch, rows "count (epochs + 1) p" on disk; row
            e (epochs + 1) + k is expert e after k epochs.
        shard: how arrays of a step are sharded over devices.
        chunk_size: learner -> how many images pass through it together, see `ssdd_jax.core.batching.map_in_chunks`.
    """

    name: str
    run: RunSpec
    num_train: int
    image_shape: tuple[int, int, int]
    num_classes: int
    labels: np.ndarray | None
    normalize: Callable[[Array], Array]
    images: Callable[[np.ndarray], jax.Array]
    learners: Mapping[str, Learner]
    real: RealImages
    view_reprs: Callable[[np.ndarray, Sequence[str]], np.ndarray]
    train_reprs: Callable[[], np.ndarray]
    represent_in_step: Callable[[Any, jax.Array], jax.Array]
    teacher_variables: Callable[[], Any]
    image_pca: Callable[[tuple[int, int, int], int], PCA]
    repr_pca: Callable[[int], PCA]
    experts: Callable[[ExpertSpec], Any]
    shard: Shard
    chunk_size: Callable[[Learner], int]

    def class_labels(self) -> np.ndarray:
        """Return the labels.

        Raises:
            InputError: there are none.
        """
        if self.labels is None:
            raise InputError(f"config.methods.{self.name} needs labels, the data have none; leave it out, or take labelled data")
        return np.asarray(self.labels)


class Phase(NamedTuple):
    """Steps of one kind, which a stage runs for a group of seeds at once, with checkpoints.

    Attributes:
        name: name of its checkpoints, unique within the method.
        num_steps: number of steps, or a function of the seeds that run together where it depends on them.
        init: (seed, last state of the previous phase) -> state; the first phase gets what `Method.start` returns. Works under jit and vmap.
            Of a state's `distilled`, if it has one, loggers show pictures while it moves.
        step: (state, step number, batch, seed, shared) -> (state, metrics with "loss"), for one seed. The batch has rows of `tables`.
        draw: (step number, seed) -> a tuple of integers "b", the rows of each table.
        tables: names among "images", "targets" (the teacher's representations under every real view) and "labels", or functions
            () -> a table of the method's own, an array or one on disk.
        shared: () -> an operand that all seeds and steps have in common, such as a teacher's variables.
        first: number of its first step, so that its lines of metrics continue those of the previous phase.
        preparatory: whether it writes no metrics, and checkpoints only when it runs long.
        watch: state -> the part of it that must stay finite.
        causes: likely cause and remedy, by the name of a metric or of a part of the watched state, in the order in which
            a step computes them; "init" is for an initial state that is not finite.
        smaller: () -> (flags, phase) pairs that take less and less memory, for the advice where a step does not fit.
    """

    name: str
    num_steps: int | Callable[[Sequence[int]], int]
    init: Callable[[jax.Array, Any], Any]
    step: Callable[..., tuple[Any, dict[str, jax.Array]]]
    draw: Callable[[Any, Any], tuple[jax.Array, ...]] | None = None
    tables: tuple[str | Callable[[], Any], ...] = ()
    shared: Callable[[], Any] = lambda: None
    first: int = 0
    preparatory: bool = False
    watch: Callable[[Any], Any] = lambda state: state
    causes: Mapping[str, str] = {}
    smaller: Callable[[], Iterator[tuple[str, "Phase"]]] = lambda: iter(())


class Finished(NamedTuple):
    """What a method has produced for one seed.

    Attributes:
        distilled: the distilled set.
        facts: numbers and strings for its manifest.
        warnings: lines for the user.
    """

    distilled: DistilledSet
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


class Method(NamedTuple):
    """A method, as functions.

    Attributes:
        spec: dataclass of its settings; `config.methods.NAME.kind` picks the method.
        version: part of every digest, so that a set made by other code is made again.
        needs: which of `TEACHER` and `LABELS` it needs; a method that needs no teacher is not rerun for a new one.
        sections: sections of the run's settings that it reads, besides its own.
        plan: (name, spec, sizes) -> plan; raises an InputError for impossible settings, before anything runs.
        start: (spec, plan, inputs, seed) -> what the first phase's `init` gets, or what `finish` gets if there are no phases.
        phases: (spec, plan, inputs) -> phases.
        finish: (spec, plan, inputs, last state of one seed) -> what was produced.
        is_automatic: spec -> whether settings are left to `choose`.
        choose: (spec, sizes, trial, largest number of trials) -> settings of which none is automatic; `trial` takes such settings and
            returns the error of a student of such a set, see `ssdd_jax.methods.automatic`.
        choice_version: likewise part of the digests of sets whose settings are automatic: raise it when others are chosen.
    """

    spec: type[Any]
    version: int
    needs: frozenset[str]
    sections: tuple[str, ...]
    plan: Callable[[str, Any, Sizes], Plan]
    start: Callable[[Any, Plan, Inputs, int], Any]
    phases: Callable[[Any, Plan, Inputs], tuple[Phase, ...]]
    finish: Callable[[Any, Plan, Inputs, Any], Finished]
    is_automatic: Callable[[Any], bool] = lambda spec: False
    choose: Callable[[Any, Sizes, Callable[[Any], float], int], Any] = lambda spec, sizes, trial, most: spec
    choice_version: int = 1
