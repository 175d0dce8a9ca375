"""The evaluation stage: students on distilled sets, their probes, and the references beside them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssdd_jax.core.outer import support_rows
from ssdd_jax.core.pool import init_member, over_leading_axis
from ssdd_jax.evals.batches import batch_schedule, batches_per_epoch
from ssdd_jax.evals.probe import accuracy, init_probe, label_subset, make_probe_step, probe_logits
from ssdd_jax.evals.student import make_student_step, repr_error
from ssdd_jax.io.artifacts import load_distilled, read_manifest
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.run.build import sgd, teacher_learner
from ssdd_jax.run.context import Context
from ssdd_jax.run.loop import Loop, stack, unstack
from ssdd_jax.run.spec import digest
from ssdd_jax.run.teacher import in_batches

REFERENCES = ("none", "teacher_init", "teacher")


class Evaluator:
    """Evaluates groups of seeds; the compiled loops are shared by all methods."""

    def __init__(self, context: Context):
        self.context = context
        self.spec = context.spec.evaluation
        self.student_loop = Loop(make_student_step(learner=context.learner, optimizer=sgd(self.spec)), (0, 0, 0))
        self.probe_optimizer = optax.sgd(optax.cosine_decay_schedule(self.spec.probe_learning_rate, self.spec.probe_steps), 0.9)
        self.probe_loop = Loop(make_probe_step(optimizer=self.probe_optimizer), (0, 0, 0))
        normalize = context.data.normalize
        self.features = jax.jit(lambda variables, batch: context.learner.features(variables, normalize(batch)))
        self.outputs = jax.jit(lambda variables, batch: context.learner.apply(variables, normalize(batch)))

    @property
    def digest(self) -> str:
        """Return the name of everything that an evaluation depends on besides the distilled set."""
        context = self.context
        return digest(context.teacher.digest, self.spec, context.spec.student)

    def evaluate(self, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Return one row a seed for a distilled method."""
        context = self.context
        folders = [context.distilled_folder(name, seed) for seed in seeds]
        manifests = [read_manifest(folder) for folder in folders]
        sets = stack([load_distilled(folder) for folder in folders])
        images, reprs = jax.jit(over_leading_axis(support_rows))(sets)
        students = self.train_students(name, seeds, images, reprs)
        target = jnp.asarray(context.reprs(self.spec.split))
        errors = [
            float(repr_error(jnp.asarray(in_batches(lambda batch, v=variables: self.outputs(v, batch), context.data.eval_images)), target))
            for variables in students
        ]
        probes = self.probe(name, seeds, [self.all_features(variables) for variables in students])
        rows = []
        for i, (seed, manifest) in enumerate(zip(seeds, manifests, strict=True)):
            assert manifest is not None, "load_distilled has read it"
            layout = manifest["layout"]
            rows.append(
                {
                    "method": name,
                    "seed": seed,
                    "student": context.spec.student.net,
                    "dataset": context.data.name,
                    "split": self.spec.split,
                    "num_images": manifest["num_images"],
                    "num_views": manifest["num_views"],
                    "views": layout["views"],
                    "target_kinds": layout["target_kinds"],
                    "stored_scalars": manifest["stored_scalars"],
                    "steps": manifest["steps"],
                    "seconds": manifest["seconds"],
                    "approximation": manifest["approximation"],
                    "repr_error": errors[i],
                    **{key: values[i] for key, values in probes.items()},
                }
            )
        return rows

    def reference(self, name: str, seeds: Sequence[int]) -> dict[str, list[float]]:
        """Return the probes of the untrained student ('none'), the untrained teacher's network, or the teacher."""
        context, spec = self.context, self.context.spec
        if name == "none":
            features = [self.all_features(context.learner.init(step_key(seed, Stream.STUDENT_INIT))) for seed in seeds]
        elif name == "teacher":
            features = [(context.reprs("train"), context.reprs(self.spec.split))] * len(seeds)
        else:
            learner = teacher_learner(spec.teacher, context.data.image_shape)
            apply = jax.jit(lambda variables, batch: learner.apply(variables, context.data.normalize(batch)))
            both = (context.data.train_images, context.data.eval_images)
            features = []
            for seed in seeds:
                variables = learner.init(step_key(seed, Stream.TEACHER_INIT))
                train, held_out = (in_batches(lambda batch, v=variables: apply(v, batch), images) for images in both)
                # An untrained network's outputs have an arbitrary scale, and the probe's learning rate is fixed.
                centre, scale = train.mean(0), train.std()
                features.append(((train - centre) / scale, (held_out - centre) / scale))
        return self.probe(name, seeds, features)

    def train_students(self, name: str, seeds: Sequence[int], images: jax.Array, reprs: jax.Array) -> list[Any]:
        """Pretrain one fresh student a seed on its pairs "S n H W C" and "S n d"; return their variables."""
        spec, num_rows = self.spec, images.shape[1]
        updates = spec.updates or spec.epochs * batches_per_epoch(num_rows, spec.batch_size)
        optimizer = sgd(spec)
        students = stack([init_member(step_key(seed, Stream.STUDENT_INIT), self.context.learner, optimizer) for seed in seeds])
        schedules = stack([batch_schedule(step_key(seed, Stream.STUDENT_STEP), num_rows, spec.batch_size, updates) for seed in seeds])
        students = self.student_loop.run(
            students, updates, (schedules, images, reprs), display=self.context.display, name=f"student/{name}", log_every=updates
        )
        return unstack(students.variables)

    def all_features(self, variables: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return a student's features of the training and of the evaluation images."""
        data = self.context.data
        train, held_out = (in_batches(lambda b: self.features(variables, b), images) for images in (data.train_images, data.eval_images))
        return train, held_out

    def probe(self, name: str, seeds: Sequence[int], features: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
        """Return the accuracy of the linear probe with all labels and with few, one value a seed."""
        labels, spec = self.context.data.train_labels, self.spec
        few = [label_subset(step_key(seed, Stream.LABEL_SUBSET), labels, spec.low_fraction, spec.low_per_class) for seed in seeds]
        every = [np.arange(len(labels))] * len(seeds)
        return {
            "probe_accuracy": self._probe(f"probe/{name}", seeds, features, every),
            "probe_accuracy_low": self._probe(f"few-label probe/{name}", seeds, features, few),
        }

    def _probe(
        self, name: str, seeds: Sequence[int], features: Sequence[tuple[np.ndarray, np.ndarray]], rows: Sequence[np.ndarray]
    ) -> list[float]:
        context, spec = self.context, self.spec
        width = features[0][0].shape[1]
        train = jnp.stack([jnp.asarray(f[r]) for (f, _), r in zip(features, rows, strict=True)])
        labels = jnp.stack([jnp.asarray(context.data.train_labels[r]) for r in rows])
        schedules = stack(
            [batch_schedule(step_key(seed, Stream.PROBE_STEP), len(rows[0]), spec.probe_batch_size, spec.probe_steps) for seed in seeds]
        )
        init = lambda seed: init_probe(step_key(seed, Stream.PROBE_INIT), width, context.data.num_classes, self.probe_optimizer)
        probes = self.probe_loop.run(
            stack([init(seed) for seed in seeds]),
            spec.probe_steps,
            (schedules, train, labels),
            display=context.display,
            name=name,
            log_every=spec.probe_steps,
        )
        held_out = jnp.asarray(context.data.eval_labels)
        return [
            float(accuracy(probe_logits(params, jnp.asarray(f)), held_out))
            for params, (_, f) in zip(unstack(probes.params), features, strict=True)
        ]
