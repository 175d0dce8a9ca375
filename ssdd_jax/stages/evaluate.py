"""The evaluation stage: students pretrained on distilled sets, the protocols that read them, and the controls next to them."""

import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.data import OnDisk
from ssdd_jax.evals.protocol import Encoded, Protocol, Readout, Steps, Tools
from ssdd_jax.evals.student import repr_error
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.scratch import Scratch
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.report import results_tables
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.feed import to_device
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.runtime.loop import Loop, seed_groups, stack, unstack
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.stages.cells import (
    Cell,
    Scope,
    cell_digest,
    cells,
    has_accuracy,
    protocols_of,
    set_of,
    student_rate,
    target_kind,
    was_made_with_teacher,
)
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import Data
from ssdd_jax.stages.networks import teacher_learner
from ssdd_jax.stages.provenance import device
from ssdd_jax.stages.results import Results
from ssdd_jax.stages.sets import Sets, with_teacher
from ssdd_jax.stages.student import Compiled, Student, encode, get_student, pretrain, pretrain_on_all, trainable, untrained


def evaluate(context: Context, own: Sets, named: Sets | None = None) -> dict[str, Any]:
    """Evaluate what results.json does not hold yet, writing it after every row, and return it.

    Args:
        context: of the run.
        own: the run's distilled sets that are there.
        named: the sets that the user names; if there are any, these alone are evaluated, next to the rows that the own ones have.
    """
    spec, has_teacher, named = context.spec, teacher_is_there(context), named or {}
    if not has_teacher:
        context.display.print("no teacher in the workdir: its rows and repr_error are left out; --task=teacher pretrains it")
    left_out = set(spec.evaluation.controls) & {"teacher_init"} if context.features is not None else set()
    if left_out and context.features is not None:
        context.display.print(f"{context.features.where} has no network: the row of its untrained network (teacher_init) is left out")
    again: Sets = with_teacher(context, named or own) if has_teacher and spec.evaluation.teacher_targets else {}
    controls = tuple(name for name in spec.evaluation.controls if (has_teacher or name == "none") and name not in left_out)
    scope, compiled = Scope(context, {**own, **named, **again}, controls, has_teacher), Compiled()
    digests = {cell: cell_digest(scope, cell) for cell in cells(scope)}
    results = Results(context.workdir / "results.json", _header(context, bool(own), has_teacher), list(digests.values()))
    # Sets and students that are left out keep the rows that they have.
    methods = (*controls, *(named or context.methods), *again)
    students = (None, *spec.chosen_students())
    missing = [c for c in digests if c.student in students and c.method in methods and digests[c] not in results]
    # What cannot be trained is refused before anything is.
    for cell in missing:
        student_rate(scope, cell)
    group_of = {seed: group for group in seed_groups(spec.seeds, spec.seeds_at_once) for seed in group}
    # A student is pretrained once for all datasets.
    key = lambda cell: (cell.student, cell.method, group_of[cell.seed])
    order = list(dict.fromkeys(map(key, missing)))
    for _, group in groupby(sorted(missing, key=lambda cell: order.index(key(cell))), key):
        for row in evaluate_group(scope, compiled, list(group)):
            results.add(row)
            if "failed" in row:
                context.display.print(f"no scores for {row['method']}, seed {row['seed']}: {row['failed']}")
    shutil.rmtree(_checkpoints(context), ignore_errors=True)
    found = results.write()
    for title, table in results_tables(found).items():
        context.metrics.loggers.table(title, *table)
    return found


def teacher_is_there(context: Context) -> bool:
    """Return whether the teacher needs no pretraining."""
    folder = context.checkpoints / f"teacher-{context.teacher_digest}"
    if context.given.teacher is not None or context.spec.teacher.features:
        return True
    if context.spec.teacher.checkpoint or context.spec.teacher.steps == 0:
        return True
    if not folder.is_dir():
        return False
    with Checkpoints(folder) as checkpoints:
        return (checkpoints.latest or 0) == context.spec.teacher.steps


def evaluate_group(scope: Scope, compiled: Compiled, group: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield one row per cell; the cells are of one method and one student, and of seeds that run together.

    A student whose pretraining diverges has a row that says so: recipes are not tuned for a row, and the table goes on.
    """
    done = set()
    try:
        for row in _rows(scope, compiled, group):
            done.add((row["dataset"], row["seed"]))
            yield row
    except NumericalError as error:
        left = [cell for cell in group if (cell.dataset, cell.seed) not in done]
        seeds = tuple(dict.fromkeys(cell.seed for cell in left))
        if len(seeds) > 1:
            for seed in seeds:
                yield from evaluate_group(scope, compiled, [cell for cell in left if cell.seed == seed])
        else:
            yield from ({**_description(scope, cell), "failed": str(error), "digest": cell_digest(scope, cell)} for cell in left)


def _header(context: Context, has_own_sets: bool, has_teacher: bool) -> dict[str, Any]:
    """Return what results.json says besides its rows: all that the report needs to know."""
    spec = context.spec
    about = lambda protocol, settings: {"columns": protocol.columns(settings), "definition": protocol.definition}
    return {
        "name": spec.name,
        "dataset": {
            "name": context.data.name,
            "fingerprint": context.data.fingerprint,
            "image_shape": list(context.data.image_shape),
            "num_classes": context.data.num_classes,
            "split": spec.evaluation.split,
        },
        "budget": {"num_pairs": spec.num_pairs, "scalars": context.budget} if has_own_sets else None,
        "teacher": {"repr_width": context.width, "shifts": context.shifts if has_own_sets and has_teacher else {}},
        "absent": context.absent if has_own_sets else {},
        "protocols": {name: about(PROTOCOLS[name], settings) for name, settings in spec.chosen_protocols().items()},
        "device": device(),
        **({"published": json_ready(published)} if (published := spec.evaluation.published) else {}),
    }


def _checkpoints(context: Context) -> Path:
    """Return the folder of the students' checkpoints, which nobody needs once their rows are there."""
    return context.checkpoints / "students"


def _rows(scope: Scope, compiled: Compiled, group: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group, dataset by dataset."""
    context, method, label = scope.context, group[0].method, group[0].student
    seeds = tuple(dict.fromkeys(cell.seed for cell in group))
    name = f"{method}/{label}" if label else method
    # Not of their datasets: a student is pretrained once for all of them.
    firsts = [next(cell for cell in group if cell.seed == seed) for seed in seeds]
    folder = _checkpoints(context) / digest([cell_digest(scope, replace(cell, dataset=context.data.name)) for cell in firsts])
    student, variables = _students(scope, compiled, name, folder, firsts)
    scratch = Scratch(folder, context.spec.data.memory_gb * 1e9)
    for dataset in dict.fromkeys(cell.dataset for cell in group):
        target, wanted = context.targets[dataset], [cell for cell in group if cell.dataset == dataset]
        chosen = tuple(cell.seed for cell in wanted)
        if student is None:
            encoded, networks = _encode_teacher(context, method, chosen, target, scratch), None
        else:
            trained = [variables[seeds.index(seed)] for seed in chosen]
            encoded, networks = [encode(student, v, target, scratch) for v in trained], trainable(student, trained, target)
        if not all(np.isfinite(part).all() for e in encoded for part in (e.eval_features, e.eval_reprs)):
            raise NumericalError(f"{name}: its features or outputs on {dataset} are not all finite")
        scores: dict[str, list[float]] = {}
        outputs = [e.eval_reprs for e in encoded]
        # The protocols read labels; without any, the error in predicting the representation is all there is.
        if target.train_labels is not None and target.eval_labels is not None:
            # What has been standardised is not kept as it was.
            standardised = [encoded.pop(0).standardised(scratch) for _ in chosen]
            readout = Readout(chosen, standardised, target.train_labels, target.eval_labels, target.num_classes, networks)
            for protocol, settings in protocols_of(scope, wanted[0]).items():
                reader = f"{protocol}-{target.digest}"
                tools = RunTools(context=context, group=name, folder=folder, compiled=compiled, label=label, reader=reader)
                scores |= _scores(protocol, PROTOCOLS[protocol], settings, readout, tools)
        for i, cell in enumerate(wanted):
            row = _description(scope, cell)
            if dataset == context.data.name and was_made_with_teacher(scope, cell):
                reprs = jnp.asarray(context.reprs(context.spec.evaluation.split))
                row["repr_error"] = float(repr_error(jnp.asarray(outputs[i]), reprs))
            if has_accuracy(scope, cell) and outputs[i].shape[1] == target.num_classes:
                row["accuracy"] = float(np.mean(np.argmax(outputs[i], 1) == target.eval_labels))
            found = {key: values[i] for key, values in scores.items()}
            bad = [key for key, value in {**row, **found}.items() if isinstance(value, float) and not np.isfinite(value)]
            if bad:
                raise NumericalError(f"{name}: {', '.join(bad)} not finite: what the student outputs has no finite error")
            yield {**row, **found, "digest": cell_digest(scope, cell)}


def _description(scope: Scope, cell: Cell) -> dict[str, Any]:
    """Return what a row says besides its scores."""
    split, stored = scope.context.spec.evaluation.split, set_of(scope, cell)
    row = {"method": cell.method, "student": cell.student, "dataset": cell.dataset, "split": split, "seed": cell.seed}
    return row | ({} if stored is None else stored.describe())


def _students(scope: Scope, compiled: Compiled, name: str, folder: Path, firsts: Sequence[Cell]) -> tuple[Student | None, list[Any]]:
    """Return the student of some cells, one per seed, with the variables that it has of every seed, on its set or as a control."""
    context, method, label, seeds = scope.context, firsts[0].method, firsts[0].student, [cell.seed for cell in firsts]
    if label is None:
        return None, []
    if method == "none":
        student = get_student(context, compiled, label, context.width, "representation")
        return student, untrained(student, seeds)
    if method == "full":
        student = get_student(context, compiled, label, context.width, "representation")
        reprs = context.reprs("train")
        targets = jnp.asarray(reprs) if isinstance(context.train_images, jax.Array) else OnDisk(reprs)
        return student, pretrain_on_all(context, student, name, folder, seeds, context.train_images, targets)
    pairs = [scope.sets[method][seed].pairs(context.data) for seed in seeds]
    student = get_student(context, compiled, label, pairs[0].targets.shape[1], target_kind(scope, firsts[0]))
    rates = [student_rate(scope, cell) for cell in firsts]
    return student, pretrain(context, student, name, folder, seeds, pairs, rates)


@dataclass(kw_only=True)
class RunTools(Tools):
    """What a protocol computes with in a run: its display, its checkpoints, and what is compiled for the student at hand.

    Attributes:
        context: of the run.
        group: method and student, for displays.
        folder: of the group's checkpoints.
        compiled: kept from set to set.
        label: of the student.
        reader: protocol and dataset, for which things are kept.
    """

    context: Context
    group: str
    folder: Path
    compiled: Compiled
    label: str | None
    reader: str

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return self.compiled.once(self.label, (self.reader, key), make)

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
        make = lambda: Loop(steps.step, (0,) * len(args[0]), draw=steps.draw, watch=steps.watch, causes=steps.causes)
        loop, state, start, checkpoints = self.once(steps, make), stack(states), 0, None
        settings = dict(tables=[to_device(table) for table in tables], display=self.context.display, name=f"{name}/{self.group}")
        if not resume:
            return unstack(loop.run(state, num_steps, stack(args), **settings))
        checkpoints, start, state = self.context.resumable(self.folder / self.reader / name, state, every=0)
        with checkpoints:
            return unstack(loop.run(state, num_steps, stack(args), **settings, start=start, checkpoints=checkpoints))

    def apply(self, fn: Callable[[jax.Array], Any], rows: Any) -> Any:
        return in_batches(fn, rows)


def _scores(name: str, protocol: Protocol, settings: Any, readout: Readout, tools: Tools) -> Mapping[str, list[float]]:
    """Return the scores of one protocol, which are those that it has announced."""
    scores, columns = protocol.run(settings, readout, tools), protocol.columns(settings)
    if set(scores) != set(columns) or any(len(values) != len(readout.seeds) for values in scores.values()):
        raise ValueError(f"the protocol {name} returned {scores}, expected {', '.join(columns)} with {len(readout.seeds)} values each")
    return scores


def _encode_teacher(context: Context, name: str, seeds: Sequence[int], target: Data, allocate: Scratch) -> list[Encoded]:
    """Return what the teacher, or its network untrained, makes of a dataset, in arrays that `allocate` makes."""
    if name == "teacher":
        represent = context.teacher.jitted(target.normalize)
        own = target is context.data
        train = context.reprs("train") if own else in_batches(represent, target.train_images, allocate)
        held_out = context.reprs(context.spec.evaluation.split) if own else in_batches(represent, target.eval_images, allocate)
        return [Encoded(train, held_out, train, held_out)] * len(seeds)
    learner = teacher_learner(context.spec.teacher, target.image_shape)
    apply = jax.jit(lambda variables, batch: learner.apply(variables, target.normalize(batch)))
    encoded = []
    for seed in seeds:
        variables = learner.init(step_key(seed, Stream.TEACHER_INIT))
        train, held_out = (
            in_batches(lambda batch, v=variables: apply(v, batch), images, allocate) for images in (target.train_images, target.eval_images)
        )
        encoded.append(Encoded(train, held_out, train, held_out))
    return encoded
