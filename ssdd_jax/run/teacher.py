"""The teacher stage: pretraining, then the frozen teacher and its cached representations."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.pool import Learner
from ssdd_jax.core.views import VIEWS
from ssdd_jax.io.files import write_bytes
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.run.build import Data, repr_width, teacher_learner, teacher_optimizer
from ssdd_jax.run.loop import Loop, resumable, stack, unstack
from ssdd_jax.run.progress import Display
from ssdd_jax.run.spec import RunSpec, digest
from ssdd_jax.teacher.barlow_twins import Projector, init_teacher, make_teacher_step

ENCODE_BATCH = 512
SHIFT_SAMPLE = 2048


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher: representation = (apply(variables, normalized images) - centre) / scale."""

    learner: Learner
    variables: Any
    centre: np.ndarray
    scale: float
    digest: str

    def represent(self, images: jax.Array) -> jax.Array:
        """Return the representations "n d" of normalized images "n H W C"."""
        return (self.learner.apply(self.variables, images) - jnp.asarray(self.centre)[None]) / self.scale


def in_batches(fn: Callable[[jax.Array], jax.Array], images: np.ndarray | jax.Array, batch_size: int = ENCODE_BATCH) -> np.ndarray:
    """Apply a jitted function to batches of one shape and return its rows; the last batch is padded."""
    rows = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        missing = min(batch_size, len(images)) - len(batch)
        padded = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)]) if missing else batch
        rows.append(np.asarray(fn(jnp.asarray(padded)))[: len(batch)])
    return np.concatenate(rows)


def train_teacher(spec: RunSpec, data: Data, folder: Path, metrics: Metrics, display: Display) -> Teacher:
    """Pretrain the teacher, or load it when its checkpoint is complete, and freeze it."""
    teacher = spec.teacher
    name = digest(teacher, data.fingerprint, spec.data.validation, spec.data.limit)
    learner = teacher_learner(teacher, data.image_shape)
    optimizer = teacher_optimizer(teacher)
    projector = Projector(teacher.projector_width, teacher.projector_layers)
    pretrain = make_teacher_step(
        encoder=learner,
        projector=projector,
        optimizer=optimizer,
        views=(teacher.first_view, teacher.second_view),
        normalize=data.normalize,
        off_diagonal=teacher.off_diagonal,
        scale=teacher.loss_scale,
    )

    def step(state, step_number, images):
        key = step_key(teacher.seed, Stream.TEACHER_STEP, step_number)
        rows_key, view_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (teacher.batch_size,), 0, len(images))
        return pretrain(state, images[rows].astype(jnp.float32) / 255.0, view_key)

    # The loop runs groups of seeds; the teacher is a group of one.
    state = stack([init_teacher(step_key(teacher.seed, Stream.TEACHER_INIT), learner, projector, repr_width(teacher), optimizer)])
    checkpoints, start, state = resumable(folder / f"teacher-{name}", state)
    with checkpoints:
        state = Loop(step, (None,), spec.steps_per_dispatch).run(
            state,
            teacher.steps,
            (jnp.asarray(data.train_images),),
            display=display,
            name="teacher",
            start=start,
            metrics=metrics,
            log_every=spec.log_every,
            checkpoints=checkpoints,
            checkpoint_every=spec.checkpoint_every,
        )
    return freeze(spec, data, learner, unstack(state)[0].encoder, name)


def freeze(spec: RunSpec, data: Data, learner: Learner, variables: Any, name: str) -> Teacher:
    """Return the frozen teacher, standardised over the training images if the settings say so."""
    raw = Teacher(learner, variables, np.zeros(repr_width(spec.teacher), np.float32), 1.0, name)
    if not spec.teacher.standardize:
        return raw
    reprs = representations(raw, data, data.train_images)
    centre = reprs.mean(0, dtype=np.float64)
    scale = float(np.sqrt(np.mean((reprs - centre) ** 2, dtype=np.float64)))
    return Teacher(learner, variables, centre.astype(np.float32), scale, name)


def representations(teacher: Teacher, data: Data, images: np.ndarray, view: str = "identity") -> np.ndarray:
    """Return the teacher's representations "n d" of uint8 images under an exact view."""
    return in_batches(jax.jit(lambda batch: teacher.represent(VIEWS[view](data.normalize(batch)))), images)


def cached_representations(teacher: Teacher, data: Data, split: str, view: str, folder: Path) -> np.ndarray:
    """Return `representations` of the 'train' or another evaluation split, from the file that an earlier run of the stage left."""
    file = folder / f"representations-{teacher.digest}" / f"{split}-{view}.npy"
    images = data.train_images if split == "train" else data.eval_images
    if not file.exists():
        reprs = representations(teacher, data, images, view)
        content = io.BytesIO()
        np.save(content, reprs, allow_pickle=False)
        write_bytes(file, content.getvalue())
    return np.load(file, allow_pickle=False)


def view_shifts(teacher: Teacher, data: Data, views: tuple[str, ...]) -> dict[str, float]:
    """Return the mean squared shift of the representation under each view, over its variance, on a sample of training images."""
    stride = max(1, len(data.train_images) // SHIFT_SAMPLE)
    sample = data.train_images[::stride][:SHIFT_SAMPLE]
    base = representations(teacher, data, sample)
    variance = np.mean((base - base.mean(0)) ** 2, dtype=np.float64)
    return {
        view: float(np.mean((representations(teacher, data, sample, view) - base) ** 2, dtype=np.float64) / variance)
        for view in views
        if view != "identity"
    }
