"""Which rows there are, and what each of them depends on. Nothing is run here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssdd_jax.errors import InputError
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.digest import digest
from ssdd_jax.settings.fields import TEACHER_CONTROLS
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.sets import Sets, StoredSet


@dataclass(frozen=True)
class Cell:
    """One row of the results. `method` is a distilled set's or a control's; a control of the teacher has no student."""

    method: str
    student: str | None
    dataset: str
    seed: int


@dataclass(frozen=True, eq=False)
class Scope:
    """What is evaluated.

    Attributes:
        context: of the run.
        sets: the distilled sets.
        controls: among `EvaluationSpec.controls`.
        has_teacher: whether the teacher is there or may be pretrained, which `repr_error` needs.
    """

    context: Context
    sets: Sets
    controls: Sequence[str]
    has_teacher: bool = True


def cells(scope: Scope) -> list[Cell]:
    """Return all cells in the order of the table."""
    spec, datasets = scope.context.spec, list(scope.context.targets)
    found = [
        Cell(name, None, data, seed) for name in TEACHER_CONTROLS if name in scope.controls for data in datasets for seed in spec.seeds
    ]
    for student in spec.students():
        for method in [*(name for name in ("none", "full") if name in scope.controls), *scope.sets]:
            seeds = [seed for seed in spec.seeds if method not in scope.sets or seed in scope.sets[method]]
            found += [Cell(method, student, data, seed) for data in datasets for seed in seeds]
    return found


def set_of(scope: Scope, cell: Cell) -> StoredSet | None:
    """Return the distilled set of a cell; None for a control."""
    return scope.sets[cell.method][cell.seed] if cell.method in scope.sets else None


def target_kind(scope: Scope, cell: Cell) -> str:
    """Return what the targets of a cell's student are; those of controls are representations."""
    stored = set_of(scope, cell)
    return "representation" if stored is None else stored.target_kind


def was_made_with_teacher(scope: Scope, cell: Cell) -> bool:
    """Return whether a cell's student predicts the representations of this run's teacher, so that it has a `repr_error`."""
    if not scope.has_teacher:
        return False
    stored = set_of(scope, cell)
    return cell.method == "full" if stored is None else stored.made_with(scope.context.teacher_digest)


def has_accuracy(scope: Scope, cell: Cell) -> bool:
    """Return whether a cell's student predicts the classes of its dataset itself, so that it has an accuracy without any protocol."""
    labelled = scope.context.targets[cell.dataset].eval_labels is not None
    return cell.dataset == scope.context.data.name and labelled and target_kind(scope, cell) != "representation"


def student_rate(scope: Scope, cell: Cell) -> float | None:
    """Return the learning rate of a cell's student where it is that of its set; None where the recipe has one.

    Raises:
        InputError: it should be that of the set, and there is none.
    """
    if cell.student is None or cell.method == "none":
        return None
    setting, recipe = scope.context.spec.evaluation.recipe(scope.context.spec.students()[cell.student], target_kind(scope, cell))
    if recipe.learning_rate:
        return None
    stored = set_of(scope, cell)
    rate = None if stored is None else stored.learning_rate
    if rate is None:
        raise InputError(
            f"config.evaluation.{setting}.learning_rate is 0, which takes the rate that a set was made with, but {cell.method} has none; "
            "give a rate"
        )
    return rate


def protocols_of(scope: Scope, cell: Cell) -> dict[str, Any]:
    """Return the settings of the protocols that read a cell, by name in the order of the table."""
    chosen = scope.context.spec.chosen_protocols()
    return {name: spec for name, spec in chosen.items() if cell.student is not None or not PROTOCOLS[name].trains}


def cell_digest(scope: Scope, cell: Cell) -> str:
    """Return the name of everything that a cell depends on, and of nothing else."""
    context, evaluation = scope.context, scope.context.spec.evaluation
    parts: list[Any] = [
        cell.method,
        cell.student,
        cell.dataset,
        cell.seed,
        context.data.digest,
        context.targets[cell.dataset].digest,
        evaluation.split,
        {name: [PROTOCOLS[name].version, spec] for name, spec in protocols_of(scope, cell).items()},
    ]
    if cell.student is not None:
        net = context.spec.students()[cell.student]
        _, recipe = evaluation.recipe(net, target_kind(scope, cell))
        parts.append(net)
        # An untrained student has as many outputs as the teacher.
        parts.append(context.width if cell.method == "none" else [recipe, evaluation.epochs, evaluation.updates, evaluation.batch_size])
        if recipe.learning_rate == 0 and cell.method != "none":
            stored = set_of(scope, cell)
            parts.append(None if stored is None else stored.learning_rate)
    if cell.method in (*TEACHER_CONTROLS, "full") or was_made_with_teacher(scope, cell):
        parts.append(context.teacher_digest)
    if has_accuracy(scope, cell):
        parts.append("accuracy")
    stored = set_of(scope, cell)
    if stored is not None and stored.is_converted(context.data):
        parts.append("normalised as the data")
    return digest(*parts, *([] if stored is None else stored.identity))
