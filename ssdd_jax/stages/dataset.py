"""The images of a run: training, held-out and evaluation split, and the statistics of the training images."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ssdd_jax.data import Images, Options, channel_statistics, open_prepared, open_source, prepare, take_rows, validation_rows
from ssdd_jax.data.prepare import damaged_arrays, read_prepared_manifest
from ssdd_jax.data.published import statistics_warning
from ssdd_jax.data.remarks import warnings
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import write_json
from ssdd_jax.io.manifest import MANIFEST
from ssdd_jax.progress import Display
from ssdd_jax.settings.digest import digest
from ssdd_jax.settings.spec import DataSpec


class Rows(NamedTuple):
    """Which rows of a split of the dataset some images are.

    Attributes:
        split: the split.
        count: how many images it has.
        rows: integers "n"; None means all, in order.
    """

    split: str
    count: int
    rows: np.ndarray | None = None


UNKNOWN = Rows("", 0)


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a run: training, held-out and evaluation split, and the statistics of the training images.

    Images are uint8 NHWC, in memory or on disk; labels are int32 "n", or None where there are none. Images that a program has normalised
    itself are float32, with mean 0 and standard deviation 1. `train_rows` and `eval_rows` say where they come from.
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
    train_rows: Rows = UNKNOWN
    eval_rows: Rows = UNKNOWN

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        h, w, c = self.train_images.shape[1:]
        return h, w, c

    def normalize(self, images: Array) -> Array:
        """Map uint8 images, or float images in [0, 1], to the student's normalized space; works under jit."""
        return normalize(images, jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32))


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """Return (images - mean) / std for images scaled to [0, 1], where uint8 is divided by 255; mean and std have one number per channel."""
    unit = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images
    row = lambda values: values.reshape((1,) * (images.ndim - 1) + (-1,))
    return (unit - row(mean)) / row(std)


def load_data(spec: DataSpec, split: str, display: Display | None = None) -> Data:
    """Prepare and open the dataset and hold out the validation images; evaluate on `split`, 'test' or 'validation'.

    Raises:
        InputError: the dataset cannot be read, or has no such split.
    """
    options = Options(spec.size, spec.fit, spec.channels, spec.on_bad_image, spec.ground, spec.overlap)
    cache = Path(spec.cache) if spec.cache else None
    dataset = open_prepared(prepare(open_source(spec.source, spec.data_dir), options, cache, display))
    # What fits into memory is read anyway, so it is verified; `ssdd_jax.data check` verifies larger datasets.
    if sum(split.images.nbytes for split in dataset.splits.values()) <= spec.memory_gb * 1e9:
        for name in damaged_arrays(dataset.folder):
            raise DataError(f"{name} in {str(dataset.folder)!r} has changed since it was prepared; delete that folder to prepare it again")
    if spec.split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise InputError(f"config.data.split is {spec.split!r}, {dataset.name} has {known}; set config.data.split to what it has")

    origin = lambda name, rows=None: Rows(name, len(dataset.splits[name].images), rows)

    def part(name: str, rows: np.ndarray | None) -> tuple[Images, np.ndarray | None]:
        images, labels = dataset.splits[name].images, dataset.splits[name].labels
        in_memory = images.nbytes <= spec.memory_gb * 1e9
        return take_rows(images, rows, in_memory), None if labels is None else np.array(labels if rows is None else labels[rows])

    groups = dataset.splits[spec.split].groups
    rows = np.arange(len(dataset.splits[spec.split].images))

    def draw(rows: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that remain and those set apart; equal images stay together, so that none is trained on and tested on."""
        kept, held = validation_rows(len(rows), share, seed, None if groups is None else groups[rows])
        return rows[kept], rows[held]

    if "test" in dataset.splits:
        test, test_rows = part("test", None), origin("test")
    elif spec.test > 0:
        # Not the seed of the validation images, which are drawn from what remains.
        rows, drawn = draw(rows, spec.test, seed=1)
        test, test_rows = part(spec.split, drawn), origin(spec.split, drawn)
    else:
        raise InputError(f"{dataset.name} has no test split to evaluate on; config.data.test=0.2 sets a fifth of the images apart")
    held_out = np.arange(0)
    if spec.validation > 0:
        rows, held_out = draw(rows, spec.validation, seed=0)
    if 0 < spec.limit < len(rows):
        # Not the first ones: many datasets are sorted by class.
        rows = rows[np.sort(np.random.RandomState(2).permutation(len(rows))[: spec.limit])]
    held_out_rows = origin(spec.split, held_out)
    train, held_out = part(spec.split, rows), part(spec.split, held_out)
    evaluation, eval_rows = (held_out, held_out_rows) if split == "validation" else (test, test_rows)
    together = []
    if groups is not None and ("test" not in dataset.splits or spec.validation > 0):
        together = ["equal images together"]
        if display is not None:
            repeated = np.count_nonzero(groups != np.arange(len(groups)))
            display.print(
                f"{dataset.name}: {repeated:,} of {len(groups):,} {spec.split} images repeat another one; equal images stay on one side "
                "of a split that is drawn"
            )
    identity = digest(dataset.fingerprint, spec.split, spec.test, spec.validation, spec.limit, *together)
    mean, std = cached_statistics(train[0], dataset.folder / f"statistics-{identity}.json")
    # A constant channel becomes zero.
    std = np.where(std > 0, std, 1.0)
    about = (len(dataset.class_names), mean, std, dataset.fingerprint, identity, dataset.folder, origin(spec.split, rows), eval_rows)
    return Data(dataset.name, *train, *held_out, *evaluation, *about)


def data_warnings(spec: DataSpec, data: Data) -> list[str]:
    """Return what a user should know about the data before a run.

    That is: statistics that differ from the published ones, `ssdd_jax.data.remarks.warnings`, and skipped images.
    """
    manifest = read_prepared_manifest(data.folder)
    if manifest is None:
        return []
    skipped = {name: len(about["skipped"]) for name, about in manifest["splits"].items() if about["skipped"]}
    counts = ", ".join(f"{count} of {name}" for name, count in skipped.items())
    left_out = f"images that cannot be used were skipped: {counts}; {data.folder / MANIFEST} lists them" if skipped else ""
    lines = (statistics_warning(spec.source, manifest), *warnings(data.name, open_prepared(data.folder), manifest), left_out)
    return [line for line in lines if line]


def cached_statistics(images: Images, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return `channel_statistics`, kept in a file next to the prepared images, since on disk they take long to read."""
    if file.is_file():
        kept = json.loads(file.read_text())
        return np.array(kept["mean"]), np.array(kept["std"])
    mean, std = channel_statistics(images)
    if not isinstance(images, np.ndarray):
        with suppress(OSError):  # if the cache is read-only, they are recomputed every time
            write_json(file, {"mean": mean.tolist(), "std": std.tolist()})
    return mean, std
