"""The teacher stage: pretraining or a published checkpoint, then the frozen teacher and its cached representations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssdd_jax.core.pool import Learner
from ssdd_jax.core.views import VIEWS
from ssdd_jax.data import Images, select_rows
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.evals.probe import accuracy, init_probe, probe_logits
from ssdd_jax.io.files import file_digest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.teacher_file import save_teacher
from ssdd_jax.io.torch_files import read_state_dict
from ssdd_jax.nets.torch_weights import torch_from_variables, variables_from_torch
from ssdd_jax.paths import local_path
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import hosts
from ssdd_jax.runtime.devices import make_devices
from ssdd_jax.runtime.encode import encode_batch_size, encode_to_file, in_batches
from ssdd_jax.runtime.feed import to_device
from ssdd_jax.runtime.loop import Loop, resumable, stack, unstack
from ssdd_jax.runtime.memory import TooLarge, limit_bytes
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.settings.spec import RunSpec, TeacherSpec
from ssdd_jax.stages.dataset import Data
from ssdd_jax.stages.networks import repr_width, teacher_learner
from ssdd_jax.teacher.barlow_twins import Projector, init_teacher, make_teacher_step
from ssdd_jax.teacher.lars import lars

SHIFT_SAMPLE = 2048
HELD_OUT = "teacher/held-out"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher: representation = (apply(variables, normalized images) - centre) / scale."""

    learner: Learner
    variables: Any
    centre: np.ndarray
    scale: float
    digest: str

    def represent_with(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return the representations "n d" of normalized images "n H W C" with these variables, such as traced ones."""
        return (self.learner.apply(variables, images) - jnp.asarray(self.centre)[None]) / self.scale

    def jitted(self, view: Callable[..., jax.Array] = lambda images: images) -> Callable[..., jax.Array]:
        """Return the jitted function from what `view` turns into normalized images to their representations."""
        # The variables are an argument: as constants of the program they would be compiled, and kept, with every one of them.
        return partial(jax.jit(lambda variables, *args: self.represent_with(variables, view(*args))), self.variables)

    def facts(self) -> dict[str, Any]:
        """Return what a set's manifest says about the teacher."""
        return {"digest": self.digest, "centre": self.centre.tolist(), "scale": self.scale}


def teacher_optimizer(spec: TeacherSpec) -> optax.GradientTransformation:
    """Return the teacher's optimizer: linear warm-up, then a cosine to zero; norms and biases are not decayed."""
    warmup = min(spec.warmup_steps, max(spec.steps - 1, 0))
    start = spec.warmup_rate if warmup else spec.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(start, spec.learning_rate, warmup, max(spec.steps, 1))
    if spec.optimizer == "lars":
        return lars(schedule, weight_decay=spec.weight_decay)
    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.adamw(schedule, weight_decay=spec.weight_decay, mask=matrices)


def online_probe_optimizer(spec: TeacherSpec) -> optax.GradientTransformation:
    """Return SGD whose rate falls to zero along a cosine."""
    return optax.sgd(optax.cosine_decay_schedule(spec.probe_learning_rate, max(spec.steps, 1)), 0.9)


def checkpoint_fingerprint(teacher: TeacherSpec) -> str:
    """Return the sha256 of the published checkpoint that the settings name; "" where they name none.

    Raises:
        InputError: there is no such file.
    """
    if not teacher.checkpoint:
        return ""
    file = local_path(teacher.checkpoint, "config.teacher.checkpoint")
    if not file.is_file():
        raise InputError(f"config.teacher.checkpoint: no file {str(file)!r}, expected a PyTorch or safetensors file; correct the path")
    return file_digest(file)


def teacher_digest(teacher: TeacherSpec, data: Data, checkpoint: str, features: str = "") -> str:
    """Return the digest of everything that the frozen teacher depends on.

    `checkpoint` is its `checkpoint_fingerprint`, `features` the fingerprint of its `Features`; both are "" for one that is pretrained.
    """
    if features:
        return digest("features", teacher.standardize, data.digest, features)
    if not checkpoint:
        # The online probe only observes.
        settings = json_ready(replace(teacher, probe_learning_rate=TeacherSpec.probe_learning_rate))
        # There are none, and teachers of versions that did not know them keep their names.
        del settings["features"]
        return digest(settings, data.digest)
    return digest(teacher.net, teacher.widths, teacher.precision, teacher.standardize, data.digest, checkpoint)


def get_teacher(
    spec: RunSpec, data: Data, name: str, folder: Path, metrics: Metrics, display: Display, saving: Mapping[str, Any]
) -> Teacher:
    """Return the frozen teacher: read from the published checkpoint, or pretrained, or loaded if pretraining is complete.

    `name` is its `teacher_digest`, `folder` the folder of all checkpoints, and `saving` has the settings of `Checkpoints`.

    Raises:
        InputError: the published checkpoint is not a PyTorch or safetensors file, or is of another network.
    """
    learner = teacher_learner(spec.teacher, data.image_shape)
    if spec.teacher.checkpoint:
        variables = read_teacher(spec.teacher.checkpoint, spec.teacher.net, learner)
    else:
        variables = pretrain_teacher(spec, data, learner, folder / f"teacher-{name}", metrics, display, saving)
    teacher = freeze(spec, data, learner, variables, name)
    if hosts.is_writer():
        save_teacher(folder.parent / "teacher", torch_from_variables(spec.teacher.net, teacher.variables), _about(spec, data, teacher))
    return teacher


def _about(spec: RunSpec, data: Data, teacher: Teacher) -> dict[str, Any]:
    """Return what the manifest of a teacher's own folder says of it."""
    steps = f"Barlow Twins, {spec.teacher.steps:,} steps of {spec.teacher.batch_size} images"
    return {
        "net": spec.teacher.net,
        "widths": list(spec.teacher.widths),
        "dataset": data.name,
        "image_shape": list(data.image_shape),
        "repr_width": int(teacher.centre.size),
        "normalization": {"mean": data.mean.tolist(), "std": data.std.tolist()},
        "pretraining": "a published checkpoint" if spec.teacher.checkpoint else steps,
        **teacher.facts(),
    }


def read_teacher(file: str, net: str, learner: Learner) -> Any:
    """Return the variables in a PyTorch or safetensors file, read without PyTorch."""
    weights = read_state_dict(local_path(file, "config.teacher.checkpoint"))
    try:
        return variables_from_torch(net, weights, jax.eval_shape(learner.init, jax.random.key(0)))
    except ValueError as error:
        raise DataError(f"config.teacher.checkpoint {file}: {error}") from error


def pretrain_teacher(
    spec: RunSpec, data: Data, learner: Learner, folder: Path, metrics: Metrics, display: Display, saving: Mapping[str, Any]
) -> Any:
    """Pretrain with Barlow Twins from the newest checkpoint on, and return the encoder's variables.

    Raises:
        InputError: the images are not pixels, whose colours it could change.
    """
    if data.train_images.dtype != np.uint8:
        raise InputError(f"the teacher's pretraining augments pixels, but the images are {data.train_images.dtype}; give uint8 images")
    teacher = spec.teacher
    optimizer, probe_optimizer = teacher_optimizer(teacher), online_probe_optimizer(teacher)
    projector = Projector(teacher.projector_width, teacher.projector_layers)
    pretrain = make_teacher_step(
        encoder=learner,
        projector=projector,
        optimizer=optimizer,
        views=(teacher.first_view, teacher.second_view),
        normalize=data.normalize,
        off_diagonal=teacher.off_diagonal,
        scale=teacher.loss_scale,
        probe_optimizer=probe_optimizer,
    )

    keys = lambda step_number, seed: jax.random.split(step_key(seed, Stream.TEACHER_STEP, step_number))
    # Without labels the online probe has nothing to learn.
    tables = [to_device(data.train_images), *([] if data.train_labels is None else [jnp.asarray(data.train_labels)])]

    def draw(step_number, seed):
        rows = jax.random.randint(keys(step_number, seed)[0], (teacher.batch_size,), 0, len(data.train_images))
        return (rows,) * len(tables)

    def step(state, step_number, batch, seed):
        images, *labels = batch
        return pretrain(state, images.astype(jnp.float32) / 255.0, keys(step_number, seed)[1], *labels)

    width, probe = repr_width(teacher, data.image_shape), None
    if data.train_labels is not None:
        probe = init_probe(step_key(teacher.seed, Stream.ONLINE_PROBE), width, data.num_classes, probe_optimizer)
    # The loop runs groups of seeds; the teacher is a group of one.
    init = jax.jit(lambda key: init_teacher(key, learner, projector, width, optimizer, probe))
    state = stack([init(step_key(teacher.seed, Stream.TEACHER_INIT))])
    checkpoints, start, state = resumable(folder, state, display, **saving)
    causes = {"loss": f"config.teacher.learning_rate ({teacher.learning_rate}); lower it, or warm up longer"}
    with checkpoints:
        loop = Loop(step, (0,), spec.steps_per_dispatch, draw, causes=causes, limit=limit_bytes(spec.memory), devices=make_devices())
        try:
            state = loop.run(
                state,
                teacher.steps,
                (jnp.asarray([teacher.seed]),),
                tables=tables,
                display=display,
                name="teacher",
                start=start,
                metrics=metrics,
                log_every=spec.log_every,
                checkpoints=checkpoints,
            )
        except TooLarge as error:
            raise TooLarge(f"teacher: {error}; lower config.teacher.batch_size ({teacher.batch_size})") from error
    (final,) = unstack(state)
    if not hosts.is_writer():
        return final.encoder
    if start < teacher.steps:
        metrics.begin(HELD_OUT, -1)
    # A run may have been interrupted between the last step and this line.
    logged = any(record["stage"] == HELD_OUT for record in metrics.read())
    if not logged and final.probe is not None and len(data.held_out_images):
        encode = jax.jit(lambda variables, batch: learner.apply(variables, data.normalize(batch)))
        reprs = in_batches(partial(encode, final.encoder), data.held_out_images)
        correct = float(accuracy(probe_logits(final.probe.params, jnp.asarray(reprs)), jnp.asarray(data.held_out_labels)))
        metrics.write(HELD_OUT, teacher.steps, {"probe_accuracy": correct})
        display.print(f"teacher: online probe {100 * correct:.1f} % on the held-out images")
    return final.encoder


def _source_of(spec: TeacherSpec) -> str:
    """Return what to do about a teacher that cannot be used."""
    if spec.features:
        return f"check config.teacher.features ({spec.features})"
    if spec.checkpoint:
        return f"check config.teacher.checkpoint ({spec.checkpoint}), and that its network expects images as they are normalized here"
    return "pretrain it with another config.teacher.learning_rate"


def freeze(spec: RunSpec, data: Data, learner: Learner, variables: Any, name: str) -> Teacher:
    """Return the frozen teacher, standardised over the training images if the settings say so."""
    bad = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(variables) if not np.isfinite(leaf).all()]
    if bad:
        raise DataError(f"the teacher's {bad[0]} holds NaN or infinity, and {len(bad) - 1} more of its arrays; {_source_of(spec.teacher)}")
    raw = Teacher(learner, variables, np.zeros(repr_width(spec.teacher, data.image_shape), np.float32), 1.0, name)
    return standardised(spec, raw, data.train_images, data.normalize)


def standardised(spec: RunSpec, raw: Teacher, rows: Images, view: Callable[[jax.Array], jax.Array]) -> Teacher:
    """Return a teacher standardised over the training images if the settings say so.

    Args:
        spec: the settings.
        raw: the teacher.
        rows: the training images, or what else it takes in their place.
        view: what turns a batch of them into the input of its network.
    """
    if not spec.teacher.standardize:
        return raw
    encode = raw.jitted(view)
    # Sums in float64, batch by batch: the representations of a large dataset do not fit into memory.
    total, squares, count = np.zeros(raw.centre.shape), 0.0, len(rows)
    size = encode_batch_size(rows)
    for start in range(0, count, size):
        reprs = in_batches(encode, rows[start : start + size]).astype(np.float64)
        total += reprs.sum(0)
        squares += float(np.sum(reprs**2))
    if not np.isfinite(squares):
        raise DataError(f"the teacher's representations of the {count} training images are not all finite; {_source_of(spec.teacher)}")
    centre = total / count
    variance = squares / (count * centre.size) - np.mean(centre**2)
    if not variance > 1e-12 * squares / (count * centre.size):
        raise InputError(
            f"the teacher represents all {count} training images alike, so there is nothing to distil; "
            "take more images, pretrain it longer or with another config.teacher.learning_rate, or set config.teacher.standardize=False"
        )
    scale = float(np.sqrt(variance))
    # They become part of compiled programs, which must be the same in all processes.
    variables, centre, scale = hosts.agree((raw.variables, centre.astype(np.float32), scale))
    return replace(raw, variables=variables, centre=np.asarray(centre), scale=float(scale))


def representations(teacher: Teacher, data: Data, rows: np.ndarray, view: str = "identity") -> np.ndarray:
    """Return the teacher's representations "n d" of some training images under an exact view."""
    return in_batches(teacher.jitted(lambda batch: VIEWS[view](data.normalize(batch))), select_rows(data.train_images, rows))


def cached_representations(
    teacher: Teacher,
    images: Images,
    view: Callable[[jax.Array, jax.Array], jax.Array],
    name: str,
    folder: Path,
    display: Display,
) -> np.ndarray:
    """Return the teacher's representations "n d" of images under a view, memory-mapped.

    They are computed once; an interrupted computation is resumed.

    Args:
        teacher: the frozen teacher.
        images: uint8 images "n H W C", or what else the teacher takes in their place.
        view: (a batch of them, their rows) -> the input of its network.
        name: name of the split and the view, which becomes part of the file's name.
        folder: folder of all checkpoints.
        display: where progress is shown.
    """
    file = folder / f"representations-{teacher.digest}" / f"{name}.npy"
    encode = teacher.jitted(view)
    if hosts.is_writer():
        encode_to_file(encode, images, teacher.centre.size, file, display, f"represent {name}")
    hosts.wait_for_writer()
    return np.load(file, mmap_mode="r", allow_pickle=False)


def view_shifts(represent: Callable[[np.ndarray, str], np.ndarray], count: int, views: tuple[str, ...]) -> dict[str, float]:
    """Return the mean squared shift of the representation under each view, divided by its variance, on a sample of training images.

    `represent` takes rows of the training images and the name of a view; `count` is the number of training images.
    """
    sample = np.arange(0, count, max(1, count // SHIFT_SAMPLE))[:SHIFT_SAMPLE]
    base = represent(sample, "identity")
    # If all images are represented alike, any shift counts as large.
    variance = np.mean((base - base.mean(0)) ** 2, dtype=np.float64) or np.finfo(np.float64).tiny
    ratio = lambda view: np.mean((represent(sample, view) - base) ** 2, dtype=np.float64) / variance
    shifts = {view: float(min(ratio(view), np.finfo(np.float32).max)) for view in views if view != "identity"}
    return {view: float(shift) for view, shift in hosts.agree(shifts).items()}
