"""What a program hands to a run in the place of what the settings name: images, and a teacher that is a function or made elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.learner import Learner
from ssdd_jax.data import Source, Split, channel_statistics
from ssdd_jax.data.dataset import array_digest
from ssdd_jax.data.prepare import check_labels
from ssdd_jax.errors import InputError
from ssdd_jax.io.files import json_digest, sha256
from ssdd_jax.io.loggers import LogFn
from ssdd_jax.progress import Display
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.settings.digest import digest
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.dataset import Data, Rows
from ssdd_jax.stages.features import IDENTITY, Features
from ssdd_jax.stages.teacher import Teacher, standardised

# Training images whose representations a function is known by.
FUNCTION_SAMPLE = 256


@dataclass(frozen=True, eq=False)
class Given:
    """What a program hands to a run, in the place of what the settings name.

    Attributes:
        data: the images.
        teacher: a frozen teacher, or representations that were made elsewhere.
        logger: is called with every line of metrics, in addition to those that the settings name.
        display: where progress is shown.
        partial: whether a run that is asked to stop while it distils goes on to the set that it has got to, instead of ending.
    """

    data: Data | None = None
    teacher: Teacher | Features | None = None
    logger: LogFn | None = None
    display: Display | None = None
    partial: bool = False


NOTHING_GIVEN = Given()


@dataclass(frozen=True, eq=False)
class HostTeacher(Teacher):
    """A teacher whose network jax cannot trace, such as a PyTorch module: it is called on NumPy arrays, between compiled programs."""

    def jitted(self, view: Callable[..., jax.Array] = lambda images: images) -> Callable[..., Any]:
        """Return the function from what `view` turns into normalized images to their representations."""
        viewed = jax.jit(view)
        return lambda *args: (np.asarray(self.learner.apply((), np.asarray(viewed(*args)))) - self.centre[None]) / np.float32(self.scale)


def function_learner(fn: Callable[[Any], Any]) -> Learner:
    """Return a function of a batch as a network without variables."""
    apply = lambda variables, batch: fn(batch)
    return Learner(lambda key: (), apply, lambda variables, batch: (fn(batch), {}), apply)


def features_teacher(spec: RunSpec, data: Data, features: Features, name: str) -> Teacher:
    """Return the teacher that has represented the images already: what it takes are the rows of `features`, in place of images."""
    learner = function_learner(lambda rows: jnp.asarray(rows, jnp.float32))
    raw = Teacher(learner, (), np.zeros(features.width, np.float32), 1.0, name)
    return standardised(spec, raw, features.take(data.train_rows), lambda rows: rows)


def function_teacher(spec: RunSpec, data: Data, fn: Callable[[Any], Any]) -> Teacher:
    """Return a function of normalised images "n H W C" that returns representations "n d" as a teacher, known by what it returns.

    Raises:
        InputError: it returns something else.
    """
    shape = (1, *data.image_shape)
    try:
        out, kind = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float32)), Teacher
    except Exception:  # whatever it is that jax cannot trace; if it cannot be called on an array either, that error is the caller's
        out, kind = np.asarray(fn(np.zeros(shape, np.float32))), HostTeacher
    found = getattr(out, "shape", None)
    if found is None or len(found) != 2 or found[0] != 1:
        raise InputError(f"the teacher returns {found or type(out).__name__} for images of {shape}, expected one row per image, (1, d)")
    raw = kind(function_learner(fn), (), np.zeros(found[1], np.float32), 1.0, "")
    sample = in_batches(raw.jitted(data.normalize), data.train_images[:FUNCTION_SAMPLE])
    name = digest("function", spec.teacher.standardize, data.digest, sha256(sample.tobytes()))
    return standardised(spec, replace(raw, digest=name), data.train_images, data.normalize)


def data_of_arrays(images: Any, labels: Any = None, eval_images: Any = None, eval_labels: Any = None) -> Data:
    """Return arrays as the images of a run.

    Args:
        images: training images "n H W C": uint8, which are normalised by their own statistics, or floats, which the caller has normalised.
        labels: integers "n" from 0, or None.
        eval_images: images to evaluate students on, of the same shape and type; None for none.
        eval_labels: their labels, or None.

    Raises:
        InputError: an array is of another type or shape.
    """
    train = _images("images", images)
    held_out = train[:0] if eval_images is None else _images("eval_images", eval_images)
    if (held_out.dtype, held_out.shape[1:]) != (train.dtype, train.shape[1:]):
        raise InputError(f"eval_images are {held_out.dtype} {held_out.shape}, expected {train.dtype} (n, *{train.shape[1:]}) as the images")
    if eval_labels is not None and (eval_images is None or labels is None):
        raise InputError("eval_labels were given without eval_images or labels, expected all of them; leave them out or give the others")
    train_labels, held_out_labels = _labels("labels", labels), _labels("eval_labels", eval_labels)
    num_classes = 0 if train_labels is None else int(train_labels.max(initial=0)) + 1
    splits = {"train": Split(train, train_labels), **({"test": Split(held_out, held_out_labels)} if len(held_out) else {})}
    source = Source("arrays", splits, tuple(map(str, range(num_classes))), ())
    check_labels(source)
    pixels, channels = train.dtype == np.uint8, train.shape[-1]
    mean, std = channel_statistics(train) if pixels else (np.zeros(channels), np.ones(channels))
    parts = [part for part in (train, train_labels, held_out, held_out_labels) if part is not None]
    name = json_digest([[part.dtype.str, list(part.shape), array_digest(part)] for part in parts])
    rows = Rows("train", len(train)), Rows("test", len(held_out))
    empty = None if train_labels is None else train_labels[:0]
    statistics = (mean, np.where(std > 0, std, 1.0))
    images_and_labels = (train, train_labels, train[:0], empty, held_out, held_out_labels)
    return Data("arrays", *images_and_labels, num_classes, *statistics, name, digest(name), Path(), *rows)


def _images(name: str, given: Any) -> np.ndarray:
    images = np.asarray(given)
    if images.ndim != 4 or 0 in images.shape or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        raise InputError(
            f"{name} are {images.dtype} {images.shape}, expected uint8 pixels (n, H, W, C), or floats of that shape that are normalised "
            "already; reshape or convert them"
        )
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise InputError(f"{name} are {images.shape}, expected channels last, (n, H, W, C); give images.transpose(0, 2, 3, 1)")
    if images.dtype == np.uint8:
        return images
    if not np.isfinite(images).all():
        raise InputError(f"{name} hold NaN or infinity, expected finite numbers; leave those images out")
    return images.astype(np.float32)


def _labels(name: str, given: Any) -> np.ndarray | None:
    if given is None:
        return None
    labels = np.asarray(given)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(f"{name} are {labels.dtype} {labels.shape}, expected integers (n,) from 0; give labels.argmax(1) of one-hot rows")
    return labels.astype(np.int32)


def given_teacher(spec: RunSpec, data: Data, teacher: Any) -> Teacher | Features:
    """Return what a program gives as a teacher: a `Teacher`, a function, representations "n d", or several of them by name.

    Raises:
        InputError: it is none of these, or a function that returns something else than representations.
    """
    if isinstance(teacher, Teacher | Features):
        return teacher
    if callable(teacher):
        return function_teacher(spec, data, teacher)
    arrays = teacher if isinstance(teacher, Mapping) else {IDENTITY: teacher}
    return Features({name: np.asarray(array) for name, array in arrays.items()})


def check_given(spec: RunSpec, data: Data, teacher: Teacher | Features | None, task: str) -> None:
    """Refuse normalised floats where a stage would augment pixels, and a function that jax cannot trace where a step would run it.

    Raises:
        InputError: it would.
    """
    if isinstance(teacher, HostTeacher) and spec.outer.real_augment == "fresh":
        raise InputError(
            "config.outer.real_augment is 'fresh', which runs the teacher in compiled steps; give a function of jax, or 'crops'"
        )
    if data.train_images.dtype == np.uint8:
        return
    asking = {
        "config.outer.real_augment": task == "distill" and spec.outer.real_augment != "views",
        "the protocol finetune": task == "evaluate" and "finetune" in spec.evaluation.protocols,
    }
    for what in (name for name, asks in asking.items() if asks):
        raise InputError(f"{what} augments pixels, but the images are {data.train_images.dtype}; give uint8 images, or leave it out")
