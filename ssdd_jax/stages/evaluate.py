"""The evaluation stage: students pretrained on distilled sets, the protocols that read them, and the controls beside them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssdd_jax.core.augment import AugmentSpec
from ssdd_jax.core.optimizers import sgd, student_optimizer
from ssdd_jax.core.pool import Learner, init_member, train_member
from ssdd_jax.data import Rows
from ssdd_jax.errors import InputError
from ssdd_jax.evals.batches import batch_schedule, batches_per_epoch
from ssdd_jax.evals.few import init_few_label_probe, make_few_label_step
from ssdd_jax.evals.finetune import init_finetuning, make_finetune_step
from ssdd_jax.evals.knn import knn_predict
from ssdd_jax.evals.probe import accuracy, init_probe, label_subset, make_probe_step, probe_logits
from ssdd_jax.evals.student import make_student_step, repr_error
from ssdd_jax.io.files import sha256
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.io.pairs import PAIRS_KIND, Pairs, read_pairs
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.feed import Table, to_device
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.runtime.loop import Loop, stack, unstack
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.settings.spec import EvaluationSpec, NetSpec, RecipeSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import Data, normalize
from ssdd_jax.stages.networks import student_learner, teacher_learner

# Controls that are no student: what they know is the representation itself.
OF_TEACHER = ("teacher_init", "teacher")
# Of every protocol, how the names of its settings begin.
PREFIXES = {"linear": "probe_", "few": "low_", "knn": "knn_", "finetune": "finetune_"}

vote = jax.jit(knn_predict, static_argnames=("num_classes", "num_neighbors", "temperature"))


def recipe_of(net: NetSpec, spec: EvaluationSpec) -> RecipeSpec:
    """Return how a network is pretrained: it depends on the network's kind alone, never on the set."""
    return spec.vit_recipe if net.net == "vit" else spec.recipe


@dataclass(frozen=True)
class Cell:
    """One row of the results. `method` is a distilled set's or a control's; a control of the teacher has no student."""

    method: str
    student: str | None
    dataset: str
    seed: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a network makes of a dataset: features for the linear protocols, representations for the neighbours."""

    train_features: np.ndarray
    eval_features: np.ndarray
    train_reprs: np.ndarray
    eval_reprs: np.ndarray


class Student:
    """One student network with what is compiled for it."""

    def __init__(self, context: Context, spec: NetSpec, width: int, where: str):
        self.context, self.spec, self.where = context, spec, where
        self.learner = student_learner(spec, context.data.image_shape, width, where)
        # Of one function, so that the network runs once for both.
        both = lambda variables, images: (self.learner.features(variables, images), self.learner.apply(variables, images))
        self.encode_batch = jax.jit(lambda variables, batch, mean, std: both(variables, normalize(batch, mean, std)))
        self._pretraining: dict[Any, tuple[Loop, optax.GradientTransformation]] = {}
        self._finetuning: dict[str, tuple[Loop, Learner, optax.GradientTransformation, Callable]] = {}
        recipe = "vit_recipe" if spec.net == "vit" else "recipe"
        rate = recipe_of(spec, context.spec.evaluation).learning_rate
        self.causes = {"loss": f"config.evaluation.{recipe}.learning_rate ({rate}); lower it"}

    def init(self, seed: int) -> Any:
        """Return the untrained variables."""
        return self.learner.init(step_key(seed, Stream.STUDENT_INIT))

    def pretrain(self, name: str, folder: Path, seeds: Sequence[int], images: jax.Array, reprs: jax.Array) -> list[Any]:
        """Pretrain one fresh student a seed on its own set, images "S n H W C" normalized and reprs "S n d"; return their variables.

        `folder` is that of its checkpoints, of which a student that is pretrained in a few minutes makes none.
        """

        def loop(optimizer: optax.GradientTransformation) -> Loop:
            return Loop(make_student_step(learner=self.learner, optimizer=optimizer), (0, 0, 0), causes=self.causes)

        return self._pretrain(name, folder, seeds, images.shape[1], loop, (images, reprs))

    def pretrain_on_all(self, name: str, folder: Path, seeds: Sequence[int], images: Table, reprs: Table) -> list[Any]:
        """Pretrain one fresh student a seed on the same images "n H W C" uint8 and reprs "n d"; return their variables."""

        def loop(optimizer: optax.GradientTransformation) -> Loop:
            def step(member, step_number, batch, schedule):
                member, loss = train_member(member, self.context.data.normalize(batch[0]), batch[1], self.learner, optimizer)
                return member, {"loss": loss}

            return Loop(step, (0,), draw=lambda step_number, schedule: (schedule[step_number],) * 2, causes=self.causes)

        return self._pretrain(name, folder, seeds, len(images), loop, (), (images, reprs))

    def _pretrain(
        self,
        name: str,
        folder: Path,
        seeds: Sequence[int],
        num_rows: int,
        make_loop: Callable[[optax.GradientTransformation], Loop],
        args: tuple[Any, ...],
        tables: tuple[Table, ...] = (),
    ) -> list[Any]:
        spec = self.context.spec.evaluation
        per_epoch = batches_per_epoch(num_rows, spec.batch_size)
        updates = spec.updates or spec.epochs * per_epoch
        key = (per_epoch, bool(tables))
        if key not in self._pretraining:
            optimizer = student_optimizer(recipe_of(self.spec, spec), updates, per_epoch)
            self._pretraining[key] = make_loop(optimizer), optimizer
        loop, optimizer = self._pretraining[key]
        students = stack([init_member(step_key(seed, Stream.STUDENT_INIT), self.learner, optimizer) for seed in seeds])
        schedules = stack([batch_schedule(step_key(seed, Stream.STUDENT_STEP), num_rows, spec.batch_size, updates) for seed in seeds])
        display = self.context.display
        checkpoints, start, students = self.context.resumable(folder / "pretraining", students, every=0)
        with checkpoints:
            students = loop.run(
                students,
                updates,
                (schedules, *args),
                tables=tables,
                display=display,
                name=f"student/{name}",
                start=start,
                checkpoints=checkpoints,
            )
        return unstack(students.variables)

    def encode(self, variables: Any, target: Data) -> Encoded:
        """Return what the student makes of the training and of the evaluation images."""
        mean, std = jnp.asarray(target.mean, jnp.float32), jnp.asarray(target.std, jnp.float32)
        run = lambda batch: self.encode_batch(variables, batch, mean, std)
        train_features, train_reprs = in_batches(run, target.train_images)
        eval_features, eval_reprs = in_batches(run, target.eval_images)
        return Encoded(train_features, eval_features, train_reprs, eval_reprs)

    def finetune(self, name: str, folder: Path, seeds: Sequence[int], pretrained: Sequence[Any], target: Data) -> list[float]:
        """Train the whole networks with all labels; return their accuracies."""
        context, spec = self.context, self.context.spec.evaluation
        if target.digest not in self._finetuning:
            learner = student_learner(self.spec, target.image_shape, target.num_classes, self.where)
            rate = optax.cosine_decay_schedule(spec.finetune_learning_rate, spec.finetune_steps)
            optimizer = sgd(RecipeSpec(weight_decay=spec.finetune_weight_decay), rate)
            view = AugmentSpec(1.0, padding=spec.finetune_padding, flip=spec.finetune_flip, jitter=0.0, gray=0.0)
            update = make_finetune_step(learner=learner, optimizer=optimizer, view=view, normalize=target.normalize)
            step = lambda member, step_number, batch, seed, schedule: update(member, step_number, seed, *batch)
            draw = lambda step_number, seed, schedule: (schedule[step_number],) * 2
            logits = jax.jit(lambda variables, batch: learner.apply(variables, target.normalize(batch)))
            causes = {"loss": f"config.evaluation.finetune_learning_rate ({spec.finetune_learning_rate}); lower it"}
            self._finetuning[target.digest] = Loop(step, (0, 0), draw=draw, causes=causes), learner, optimizer, logits
        loop, learner, optimizer, logits = self._finetuning[target.digest]
        start = lambda seed, variables: init_finetuning(step_key(seed, Stream.FINETUNE_INIT), variables, learner, optimizer)
        members = stack([start(seed, variables) for seed, variables in zip(seeds, pretrained, strict=True)])
        schedules = stack(
            [
                batch_schedule(step_key(s, Stream.FINETUNE_STEP), len(target.train_labels), spec.finetune_batch_size, spec.finetune_steps)
                for s in seeds
            ]
        )
        args, tables = (jnp.asarray(seeds), schedules), (to_device(target.train_images), jnp.asarray(target.train_labels))
        checkpoints, start, members = context.resumable(folder / f"finetuning-{target.digest}", members, every=0)
        with checkpoints:
            members = loop.run(
                members,
                spec.finetune_steps,
                args,
                tables=tables,
                display=context.display,
                name=f"finetune/{name}",
                start=start,
                checkpoints=checkpoints,
            )
        labels = jnp.asarray(target.eval_labels)
        return [
            float(accuracy(jnp.asarray(in_batches(lambda batch, v=variables: logits(v, batch), target.eval_images)), labels))
            for variables in unstack(members.variables)
        ]


class Evaluator:
    """Evaluates cells, by groups of seeds.

    Args:
        context: of the run.
        sets: of every distilled set's name, the folder for every seed.
        controls: among `EvaluationSpec.controls`.
        knows_teacher: whether the teacher may be asked for, which is needed for `repr_error`.
    """

    def __init__(self, context: Context, sets: Mapping[str, Mapping[int, Path]], controls: Sequence[str], *, knows_teacher: bool = True):
        self.context, self.sets, self.controls, self.teacher_is_there = context, sets, controls, knows_teacher
        self.spec = context.spec.evaluation
        self.probe_optimizer = optax.sgd(optax.cosine_decay_schedule(self.spec.probe_learning_rate, self.spec.probe_steps), 0.9)
        self.probe_loop = Loop(make_probe_step(optimizer=self.probe_optimizer), (0, 0, 0))
        # L-BFGS keeps an infinity for what it has not tried yet.
        self.few_loop = Loop(make_few_label_step(l2=self.spec.low_l2), (0, 0), watch=lambda state: state.params)
        self.targets = context.targets
        self._students: dict[Any, Student] = {}
        self._manifests: dict[Path, dict[str, Any]] = {}
        self._identities: dict[Path, list[Any]] = {}

    def cells(self) -> list[Cell]:
        """Return all cells in the order of the table."""
        students, datasets, seeds = self.context.spec.students(), list(self.targets), self.context.spec.seeds
        cells = [Cell(name, None, data, seed) for name in OF_TEACHER if name in self.controls for data in datasets for seed in seeds]
        for student in students:
            methods = [name for name in ("none", "full") if name in self.controls] + list(self.sets)
            for method in methods:
                folders = self.sets.get(method, dict.fromkeys(seeds))
                cells += [Cell(method, student, data, seed) for data in datasets for seed in seeds if seed in folders]
        return cells

    def digest(self, cell: Cell) -> str:
        """Return the name of everything that a cell depends on, and of nothing else."""
        context, spec = self.context, self.spec
        protocols = [name for name in spec.protocols if name != "finetune" or cell.student is not None]
        settings = json_ready(spec)
        parts: list[Any] = [
            cell.method,
            cell.student,
            cell.dataset,
            cell.seed,
            context.data.digest,
            self.targets[cell.dataset].digest,
            spec.split,
            {name: {key: value for key, value in settings.items() if key.startswith(PREFIXES[name])} for name in protocols},
        ]
        if cell.student is not None:
            net = context.spec.students()[cell.student]
            parts.append(net)
            # An untrained student has as many outputs as the teacher.
            parts.append(context.width if cell.method == "none" else [recipe_of(net, spec), spec.epochs, spec.updates, spec.batch_size])
        if cell.method in (*OF_TEACHER, "full") or self.knows_teacher(cell):
            parts.append(context.teacher_digest)
        if cell.method in self.sets:
            parts += self.identity(self.sets[cell.method][cell.seed])
        return digest(*parts)

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the students' checkpoints, which nobody needs once their rows are there."""
        return self.context.checkpoints / "students"

    def manifest(self, path: Path) -> dict[str, Any]:
        """Return the manifest of a set, read once."""
        if path not in self._manifests:
            self._manifests[path] = read_manifest(path) or {}
        return self._manifests[path]

    def identity(self, path: Path) -> list[Any]:
        """Return what a set's pairs depend on."""
        if path not in self._identities:
            manifest = self.manifest(path)
            parts = [manifest.get(key) for key in ("sha256", "files", "layout", "normalization")]
            if manifest.get("kind") == PAIRS_KIND:
                # Its manifest need not list its files.
                pairs = read_pairs(path)
                parts += [sha256(pairs.images.tobytes()), sha256(pairs.targets.tobytes())]
            self._identities[path] = parts
        return self._identities[path]

    def knows_teacher(self, cell: Cell) -> bool:
        """Return whether a cell's set was made with this run's teacher, so that its error can be told."""
        if not self.teacher_is_there:
            return False
        if cell.method not in self.sets:
            return cell.method == "full"
        manifest = self.manifest(self.sets[cell.method][cell.seed])
        return (manifest.get("teacher") or {}).get("digest") == self.context.teacher_digest

    def pairs(self, method: str, seed: int) -> Pairs:
        """Return the pairs of a distilled set, checked against the data."""
        path, expected = self.sets[method][seed], self.context.data.image_shape
        pairs = read_pairs(path)
        if pairs.images.shape[1:] != expected:
            raise InputError(f"the set at {path} has images of {pairs.images.shape[1:]}, the data {expected}; set config.data to match it")
        return pairs

    def student(self, label: str, width: int) -> Student:
        """Return the student of a label with so many outputs."""
        context = self.context
        if (label, width) not in self._students:
            # One network at a time: what was compiled for the last one is let go.
            self._students = {key: value for key, value in self._students.items() if key[0] == label}
            where = f"config.evaluation.students.{label}" if context.spec.evaluation.students else "config.student"
            self._students[label, width] = Student(context, context.spec.students()[label], width, where)
        return self._students[label, width]

    def evaluate(self, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """Yield one row a cell; the cells are of one method and one student, and of seeds that run together.

        A student whose pretraining diverges has a row that says so: recipes are not tuned for a row, and the table goes on.
        """
        done = set()
        try:
            for row in self.rows(cells):
                done.add((row["dataset"], row["seed"]))
                yield row
        except NumericalError as error:
            left = [cell for cell in cells if (cell.dataset, cell.seed) not in done]
            seeds = tuple(dict.fromkeys(cell.seed for cell in left))
            if len(seeds) > 1:
                for seed in seeds:
                    yield from self.evaluate([cell for cell in left if cell.seed == seed])
            else:
                yield from ({**self.row(cell), "failed": str(error), "digest": self.digest(cell)} for cell in left)

    def rows(self, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """Yield the rows, dataset by dataset."""
        method, label = cells[0].method, cells[0].student
        seeds = tuple(dict.fromkeys(cell.seed for cell in cells))
        name = f"{method}/{label}" if label else method
        # Not of their datasets: a student is pretrained once for all of them.
        firsts = [next(cell for cell in cells if cell.seed == seed) for seed in seeds]
        folder = self.checkpoints / digest([self.digest(replace(cell, dataset=self.context.data.name)) for cell in firsts])
        student, variables = self.students(name, folder, method, label, seeds)
        for dataset in dict.fromkeys(cell.dataset for cell in cells):
            target, wanted = self.targets[dataset], [cell for cell in cells if cell.dataset == dataset]
            chosen = tuple(cell.seed for cell in wanted)
            if student is None:
                trained, encoded = [], self.encode_teacher(method, chosen, target)
            else:
                trained = [variables[seeds.index(seed)] for seed in chosen]
                encoded = [student.encode(v, target) for v in trained]
            if method in ("none", *OF_TEACHER):
                encoded = [standardise(e) for e in encoded]
            # The protocols read labels; without any, the error in predicting the representation is all there is.
            labelled = target.train_labels is not None and target.eval_labels is not None
            scores = self.scores(name, chosen, encoded, target) if labelled else {}
            if labelled and student is not None and "finetune" in self.spec.protocols:
                scores["finetune"] = student.finetune(name, folder, chosen, trained, target)
            for i, cell in enumerate(wanted):
                row = self.row(cell)
                if dataset == self.context.data.name and self.knows_teacher(cell):
                    reprs = jnp.asarray(self.context.reprs(self.spec.split))
                    row["repr_error"] = float(repr_error(jnp.asarray(encoded[i].eval_reprs), reprs))
                found = {key: values[i] for key, values in scores.items()}
                bad = [key for key, value in {**row, **found}.items() if isinstance(value, float) and not np.isfinite(value)]
                if bad:
                    raise NumericalError(f"{name}: {', '.join(bad)} not finite: what the student outputs has no finite error")
                yield {**row, **found, "digest": self.digest(cell)}

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return what a row says besides its scores."""
        row = {"method": cell.method, "student": cell.student, "dataset": cell.dataset, "split": self.spec.split, "seed": cell.seed}
        return row | (describe(self.manifest(self.sets[cell.method][cell.seed])) if cell.method in self.sets else {})

    def students(self, name: str, folder: Path, method: str, label: str | None, seeds: Sequence[int]) -> tuple[Student | None, list[Any]]:
        """Return the student of a label with the variables that it has, one a seed, on a set or as a control."""
        context = self.context
        if label is None:
            return None, []
        if method == "none":
            student = self.student(label, context.width)
            return student, [student.init(seed) for seed in seeds]
        if method == "full":
            student = self.student(label, context.width)
            reprs = context.reprs("train")
            targets = jnp.asarray(reprs) if isinstance(context.train_images, jax.Array) else Rows(reprs)
            return student, student.pretrain_on_all(name, folder, seeds, context.train_images, targets)
        pairs = [self.pairs(method, seed) for seed in seeds]
        student = self.student(label, pairs[0].targets.shape[1])
        images, targets = (stack([jnp.asarray(getattr(p, part)) for p in pairs]) for part in ("images", "targets"))
        return student, student.pretrain(name, folder, seeds, images, targets)

    def encode_teacher(self, name: str, seeds: Sequence[int], target: Data) -> list[Encoded]:
        """Return what the teacher, or its network untrained, makes of a dataset."""
        context = self.context
        if name == "teacher":
            represent = jax.jit(lambda batch: context.teacher.represent(target.normalize(batch)))
            own = target is context.data
            train = np.array(context.reprs("train")) if own else in_batches(represent, target.train_images)
            held_out = np.array(context.reprs(self.spec.split)) if own else in_batches(represent, target.eval_images)
            return [Encoded(train, held_out, train, held_out)] * len(seeds)
        learner = teacher_learner(context.spec.teacher, target.image_shape)
        apply = jax.jit(lambda variables, batch: learner.apply(variables, target.normalize(batch)))
        encoded = []
        for seed in seeds:
            variables = learner.init(step_key(seed, Stream.TEACHER_INIT))
            train, held_out = (
                in_batches(lambda batch, v=variables: apply(v, batch), images) for images in (target.train_images, target.eval_images)
            )
            encoded.append(Encoded(train, held_out, train, held_out))
        return encoded

    def scores(self, name: str, seeds: Sequence[int], encoded: Sequence[Encoded], target: Data) -> dict[str, list[float]]:
        """Return the accuracies of the protocols that read a frozen network, one value a seed."""
        spec, labels, scores = self.spec, target.train_labels, {}
        if "linear" in spec.protocols:
            scores["linear"] = self.linear(name, seeds, encoded, target)
        if "few" in spec.protocols:
            for fraction in spec.low_fractions:
                rows = [label_subset(step_key(seed, Stream.LABEL_SUBSET), labels, fraction, spec.low_per_class) for seed in seeds]
                scores[f"few_{100 * fraction:g}"] = self.few(name, encoded, target, rows)
        if "knn" in spec.protocols:
            scores["knn"] = [self.knn(e, target) for e in encoded]
        return scores

    def linear(self, name: str, seeds: Sequence[int], encoded: Sequence[Encoded], target: Data) -> list[float]:
        """Return the accuracies of the linear probe with all labels."""
        spec, num_rows, width = self.spec, len(target.train_labels), encoded[0].train_features.shape[1]
        schedules = [batch_schedule(step_key(seed, Stream.PROBE_STEP), num_rows, spec.probe_batch_size, spec.probe_steps) for seed in seeds]
        probes = [init_probe(step_key(seed, Stream.PROBE_INIT), width, target.num_classes, self.probe_optimizer) for seed in seeds]
        features = stack([jnp.asarray(e.train_features) for e in encoded])
        labels = stack([jnp.asarray(target.train_labels)] * len(seeds))
        args = (stack(schedules), features, labels)
        probes = self.probe_loop.run(stack(probes), spec.probe_steps, args, display=self.context.display, name=f"probe/{name}")
        return self.accuracies(probes.params, encoded, target)

    def few(self, name: str, encoded: Sequence[Encoded], target: Data, rows: Sequence[np.ndarray]) -> list[float]:
        """Return the accuracies of the L-BFGS probe with the labels of `rows` alone."""
        features = stack([jnp.asarray(e.train_features[r]) for e, r in zip(encoded, rows, strict=True)])
        labels = stack([jnp.asarray(target.train_labels)[r] for r in rows])
        probes = stack([init_few_label_probe(features.shape[-1], target.num_classes)] * len(rows))
        display = self.context.display
        probes = self.few_loop.run(probes, self.spec.low_steps, (features, labels), display=display, name=f"few-label probe/{name}")
        return self.accuracies(probes.params, encoded, target)

    def knn(self, encoded: Encoded, target: Data) -> float:
        """Return the accuracy of the k-nearest neighbours."""
        train, labels, spec = jnp.asarray(encoded.train_reprs), jnp.asarray(target.train_labels), self.spec
        settings = dict(num_classes=target.num_classes, num_neighbors=spec.knn_neighbors, temperature=spec.knn_temperature)
        predicted = in_batches(lambda queries: vote(train, labels, queries, **settings), encoded.eval_reprs)
        return float(np.mean(predicted == target.eval_labels))

    @staticmethod
    def accuracies(params: Any, encoded: Sequence[Encoded], target: Data) -> list[float]:
        """Return the accuracy of every seed's linear classifier on the evaluation images."""
        labels = jnp.asarray(target.eval_labels)
        return [
            float(accuracy(probe_logits(p, jnp.asarray(e.eval_features)), labels)) for p, e in zip(unstack(params), encoded, strict=True)
        ]


def standardise(encoded: Encoded) -> Encoded:
    """Centre what a control makes of a dataset and divide it by its overall standard deviation.

    An untrained network's outputs have an arbitrary scale, down to nothing where it is deep, and the probes' learning rate
    and decay are fixed; the teacher is read in the same way.
    """

    def pair(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = train.mean(0, dtype=np.float64).astype(np.float32)
        scale = np.float32(np.sqrt(np.mean((train - centre) ** 2, dtype=np.float64)) or 1.0)
        return (train - centre) / scale, (held_out - centre) / scale

    features, reprs = pair(encoded.train_features, encoded.eval_features), pair(encoded.train_reprs, encoded.eval_reprs)
    return Encoded(*features, *reprs)


def describe(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a set's manifest says about its size and its making; nothing for a control."""
    layout = manifest.get("layout") or {}
    found = {key: manifest.get(key) for key in ("num_images", "num_views", "stored_scalars", "steps", "seconds", "approximation")}
    return {**found, "views": layout.get("views"), "view_targets": layout.get("view_targets")} if manifest else {}
