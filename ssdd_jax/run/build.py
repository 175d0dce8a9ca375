"""From settings to objects: data on the device, learners, optimizers, and the plan of every method."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ssdd_jax.core.distilled import Layout, budget_scalars, count_stored_scalars, max_images
from ssdd_jax.core.pool import Learner
from ssdd_jax.data import Images, Options, channel_statistics, load_dataset, take_rows, validation_rows
from ssdd_jax.data.prepare import damaged_arrays
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import write_json
from ssdd_jax.nets import make_learner, net_widths
from ssdd_jax.progress import Display
from ssdd_jax.run.spec import DataSpec, MethodSpec, NetSpec, PoolSpec, RecipeSpec, RunSpec, TeacherSpec, digest
from ssdd_jax.teacher.lars import lars


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a run: training, held-out and evaluation split, and the statistics of the training images.

    Images are uint8 NHWC, in memory or on disk; labels are int32 "n", or None where there are none.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray | None
    held_out_images: Images
    held_out_labels: np.ndarray | None
    eval_images: Images
    eval_labels: np.ndarray | None
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str
    digest: str
    folder: Path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        h, w, c = self.train_images.shape[1:]
        return h, w, c

    def normalize(self, images: Array) -> Array:
        """Return uint8 images, or float images in [0, 1], in the student's normalized space; works under jit."""
        return normalize(images, jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32))


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """Return (images - mean) / std of uint8 images, or of float images in [0, 1]; mean and std are a number a channel."""
    unit = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images
    row = lambda values: values.reshape((1,) * (images.ndim - 1) + (-1,))
    return (unit - row(mean)) / row(std)


def load_data(spec: DataSpec, split: str, display: Display | None = None) -> Data:
    """Prepare and open the dataset and hold out the validation images; evaluate on `split`, 'test' or 'validation'.

    Raises:
        InputError: the dataset cannot be read, or has no such split.
    """
    options = Options(spec.size, spec.fit, spec.channels, spec.on_bad_image)
    dataset = load_dataset(spec.source, spec.data_dir, options, Path(spec.cache) if spec.cache else None, display)
    # What fits into memory is read anyway; `ssdd_jax.data check` looks at the rest.
    if sum(split.images.nbytes for split in dataset.splits.values()) <= spec.memory_gb * 1e9:
        for name in damaged_arrays(dataset.folder):
            raise DataError(f"{name} in {str(dataset.folder)!r} is not as it was prepared; delete that folder and it is prepared again")
    if spec.split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise InputError(f"config.data.split is {spec.split!r}, {dataset.name} has {known}; set config.data.split to what it has")

    def part(name: str, rows: np.ndarray | None) -> tuple[Images, np.ndarray | None]:
        images, labels = dataset.splits[name].images, dataset.splits[name].labels
        in_memory = images.nbytes <= spec.memory_gb * 1e9
        return take_rows(images, rows, in_memory), None if labels is None else np.array(labels if rows is None else labels[rows])

    rows = np.arange(len(dataset.splits[spec.split].images))
    if "test" in dataset.splits:
        test = part("test", None)
    elif spec.test > 0:
        # Another seed than the validation images', which are drawn from what remains.
        kept, held = validation_rows(len(rows), spec.test, seed=1)
        test, rows = part(spec.split, rows[held]), rows[kept]
    else:
        raise InputError(f"{dataset.name} has no test split to evaluate on; config.data.test=0.2 sets a fifth of the images apart")
    held_out = np.arange(0)
    if spec.validation > 0:
        kept, held = validation_rows(len(rows), spec.validation)
        held_out, rows = rows[held], rows[kept]
    if 0 < spec.limit < len(rows):
        # Not the first ones: many datasets come class by class.
        rows = rows[np.sort(np.random.RandomState(2).permutation(len(rows))[: spec.limit])]
    train, held_out = part(spec.split, rows), part(spec.split, held_out)
    evaluation = held_out if split == "validation" else test
    identity = digest(dataset.fingerprint, spec.split, spec.test, spec.validation, spec.limit)
    mean, std = _statistics(train[0], dataset.folder / f"statistics-{identity}.json")
    # A channel that is the same everywhere becomes zero.
    std = np.where(std > 0, std, 1.0)
    return Data(
        dataset.name, *train, *held_out, *evaluation, len(dataset.class_names), mean, std, dataset.fingerprint, identity, dataset.folder
    )


def _statistics(images: Images, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return `channel_statistics`, kept in a file beside the prepared images, since on disk they take long to read."""
    if file.is_file():
        kept = json.loads(file.read_text())
        return np.array(kept["mean"]), np.array(kept["std"])
    mean, std = channel_statistics(images)
    if not isinstance(images, np.ndarray):
        with suppress(OSError):  # where the cache is read-only, they are computed again
            write_json(file, {"mean": mean.tolist(), "std": std.tolist()})
    return mean, std


def repr_width(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> int:
    """Return d."""
    return net_widths(spec.net, spec.widths, image_shape, 1.0)[-1]


def teacher_learner(spec: TeacherSpec, image_shape: tuple[int, int, int]) -> Learner:
    """Return the teacher's network; its outputs are the representation."""
    return _learner(NetSpec(spec.net, spec.widths), image_shape, 0, "config.teacher", pooled=True, precision=spec.precision)


def student_learner(spec: NetSpec, image_shape: tuple[int, int, int], num_outputs: int, where: str = "config.student") -> Learner:
    """Return a student's network, with a linear layer of `num_outputs` on its flattened features."""
    return _learner(spec, image_shape, num_outputs, where)


def member_learner(spec: RunSpec, image_shape: tuple[int, int, int]) -> Learner:
    """Return the network of the pool's members: the student's, at the precision of the outer step."""
    width = repr_width(spec.teacher, image_shape)
    return _learner(spec.student, image_shape, width, "config.student", precision=spec.outer.precision)


def _learner(spec: NetSpec, image_shape: tuple[int, int, int], num_outputs: int, where: str, **settings: Any) -> Learner:
    if spec.net.startswith("resnet") and len(spec.widths) not in (0, 4):
        raise InputError(
            f"{where}: {spec.net} got widths {spec.widths}, expected four, one a stage; {where}.widths='()' has the published ones"
        )
    try:
        return make_learner(spec.net, spec.widths, image_shape, num_outputs, width_factor=spec.width_factor, **settings)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def sgd(spec: PoolSpec | RecipeSpec, schedule: optax.Schedule | None = None) -> optax.GradientTransformation:
    """Return SGD with momentum and weight decay coupled to the gradient on every parameter, as PyTorch's."""
    return optax.chain(optax.add_decayed_weights(spec.weight_decay), optax.sgd(schedule or spec.learning_rate, spec.momentum))


def student_optimizer(spec: RecipeSpec, updates: int, updates_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a student's pretraining of so many updates."""
    warmup = min(spec.warmup_epochs * updates_per_epoch, max(updates - 1, 0))
    if spec.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else spec.learning_rate, spec.learning_rate, warmup, max(updates, 1))
    else:
        schedule = (
            optax.warmup_constant_schedule(0.0, spec.learning_rate, warmup) if warmup else optax.constant_schedule(spec.learning_rate)
        )
    if spec.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=spec.weight_decay)
    return sgd(spec, schedule)


def outer_optimizer(spec: RunSpec, method: MethodSpec, start: int = 0) -> optax.GradientTransformation:
    """Return AdamW whose linear schedule is `start` steps in."""
    steps = num_steps(spec, method)
    linear = optax.linear_schedule(method.learning_rate, method.learning_rate * spec.outer.final_rate, max(steps, 1))
    return optax.adamw(lambda count: linear(count + start), spec.outer.b1, spec.outer.b2, weight_decay=spec.outer.weight_decay)


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


def num_steps(spec: RunSpec, method: MethodSpec) -> int:
    """Return the outer steps of a method."""
    return spec.outer.steps if method.steps < 0 else method.steps


@dataclass(frozen=True)
class Plan:
    """What a method will store: its layout, its number of images and their cost in numbers."""

    layout: Layout
    num_images: int
    stored_scalars: int
    budget: int


def plan_method(
    name: str, method: MethodSpec, num_pairs: int, image_shape: tuple[int, int, int], width: int, shifts: Mapping[str, float]
) -> Plan:
    """Choose the target kinds and the number of images that the budget holds.

    Args:
        name: of the method, for messages.
        method: its settings.
        num_pairs: N.
        image_shape: (H, W, C).
        width: d.
        shifts: mean squared shift of the teacher's representation under each view, divided by its variance; used
            where the target kinds are automatic.

    Raises:
        InputError: the budget does not hold the bases and one image, or a size does not fit the data.
    """
    where = f"config.methods.{name}"
    h, w, c = image_shape
    if method.base_size > min(h, w):
        raise InputError(f"{where}.base_size is {method.base_size}, expected at most {min(h, w)}, the images' side; 0 is the full size")
    base_shape = (method.base_size, method.base_size, c) if method.base_size else image_shape
    if method.image_bases > prod(base_shape):
        raise InputError(f"{where}.image_bases is {method.image_bases}, expected at most {prod(base_shape)}, the numbers of a base image")
    if method.repr_bases > width:
        raise InputError(f"{where}.repr_bases is {method.repr_bases}, expected at most {width}, the width of the teacher's representation")
    budget = budget_scalars(num_pairs, image_shape, width)
    sizes = {"num_image_bases": method.image_bases, "num_repr_bases": method.repr_bases, "hidden": method.hidden}
    auto = method.target_kinds == ("auto",)
    try:
        if auto:
            shared = [view for view in method.views[1:] if shifts[view] <= method.shared_below]
            kinds_of = lambda costly: ("stored", *("shared" if view in shared else costly for view in method.views[1:]))
            layouts = [Layout(image_shape, base_shape, method.views, kinds_of(costly)) for costly in ("stored", "network")]
        else:
            layouts = [Layout(image_shape, base_shape, method.views, method.target_kinds)]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    # Stored coefficients are exact, so networks must save something to be chosen.
    layout = max(layouts, key=lambda candidate: max_images(budget, candidate, width, **sizes))
    most = max_images(budget, layout, width, **sizes)
    if most < 1:
        least = count_stored_scalars(1, layout, width, **sizes)
        raise InputError(
            f"{where}: the bases and one image take {least} numbers, the budget of {num_pairs} pairs is {budget}; "
            f"lower image_bases ({method.image_bases}) or repr_bases ({method.repr_bases}), or raise config.num_pairs"
        )
    if method.images > most:
        raise InputError(f"{where}.images is {method.images}, expected at most {most}, what the budget of {budget} numbers holds")
    count = method.images or most
    return Plan(layout, count, count_stored_scalars(count, layout, width, **sizes), budget)
