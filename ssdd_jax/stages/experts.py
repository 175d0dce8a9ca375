"""Experts: networks trained on all images, whose parameters after every epoch a trajectory method imitates; or published ones."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ssdd_jax.core.batching import batch_schedule, batches_per_epoch
from ssdd_jax.core.diff_augment import diff_augment
from ssdd_jax.core.trajectories import gsam_direction
from ssdd_jax.data import OnDisk
from ssdd_jax.errors import DataError, InputError, printable
from ssdd_jax.io.files import file_digest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.torch_files import read_torch
from ssdd_jax.nets.flat import FlatLearner, flat_learner
from ssdd_jax.nets.torch_weights import parameter_names, variables_from_torch
from ssdd_jax.paths import local_path
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import hosts
from ssdd_jax.runtime.encode import GrowingFile, is_intact
from ssdd_jax.runtime.feed import to_device
from ssdd_jax.runtime.loop import Loop
from ssdd_jax.runtime.memory import TooLarge, limit_bytes
from ssdd_jax.settings.digest import digest
from ssdd_jax.settings.methods import ExpertSpec
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.dataset import Data

MISSING = "missing"


def trajectory_files(files: str, where: str) -> list[Path]:
    """Return the files of published trajectories that a setting names, in the order of their numbers; none if it is empty.

    Raises:
        InputError: there are none.
    """
    if not files:
        return []
    path = local_path(files, where)
    found = sorted(path.glob("replay_buffer_*.pt"), key=lambda file: [int(part) for part in re.findall(r"\d+", file.stem)])
    found = [path] if path.is_file() else found
    if not found:
        raise InputError(f"{where} is {files!r}, expected a file replay_buffer_N.pt or a folder of them; correct the path")
    return found


def files_fingerprint(files: str, where: str) -> str:
    """Return the digest of what `trajectory_files` finds; "" where nothing is named, `MISSING` where it is not there."""
    try:
        return digest([file_digest(file) for file in trajectory_files(files, where)]) if files else ""
    except InputError:
        return MISSING


def get_experts(run: RunSpec, spec: ExpertSpec, where: str, data: Data, file: Path, metrics: Metrics, display: Display) -> OnDisk:
    """Return the parameters of experts, rows "count (epochs + 1) p" on disk: row e (epochs + 1) + k is expert e after k epochs.

    They are trained, or read from published files, once; an interrupted computation is resumed.

    Args:
        run: the settings that everything shares.
        spec: those of the experts.
        where: the section that they come from, for messages.
        data: the images that they are trained on.
        file: where they are kept, an .npy file whose name stands for all that they depend on.
        metrics: where lines go, one per epoch.
        display: where progress is shown.

    Raises:
        InputError: the network has batch norms.
        DataError: a published file holds something else.
        NumericalError: training diverges.
    """
    if hosts.is_writer():
        # The others wait: experts are small, and of one device.
        with hosts.alone():
            if not is_intact(file, display):
                flat = flat_learner(spec.net, data.image_shape, data.num_classes, f"{where}.net", spec.precision)
                growing = GrowingFile(file, (spec.count * (spec.epochs + 1), flat.num_params))
                if spec.files:
                    read_experts(spec, where, flat, growing)
                else:
                    train_experts(run, spec, where, flat, data, growing, metrics, display)
                growing.complete()
    hosts.wait_for_writer()
    return OnDisk(np.load(file, mmap_mode="r", allow_pickle=False))


class _Epochs:
    """The checkpoints of an expert's loop, see `ssdd_jax.runtime.loop.Saves`: parameters after an epoch, which are all of its state."""

    def __init__(self, growing: GrowingFile, per_epoch: int, first: int):
        self.notes: dict[str, Any] = {}
        self.growing, self.every, self.first = growing, per_epoch, first

    @property
    def latest(self) -> int:
        """Return the step of the last row."""
        return (self.growing.done - self.first - 1) * self.every

    def due(self, step: int) -> bool:
        """Return whether an epoch ends."""
        return step % self.every == 0

    def save(self, step: int, state: Any, notes: Any = None) -> None:
        """Write the parameters where an epoch ends; the steps of a part of one are repeated."""
        if self.due(step):
            self.growing.append(np.asarray(state))
            self.growing.record()

    def wait(self) -> None:
        """Do nothing: everything is written at once."""


def train_experts(
    run: RunSpec, spec: ExpertSpec, where: str, flat: FlatLearner, data: Data, growing: GrowingFile, metrics: Metrics, display: Display
) -> None:
    """Train the experts whose rows are not there yet, one after the other."""
    num_rows, rows_each = len(data.train_images), spec.epochs + 1
    per_epoch = batches_per_epoch(num_rows, spec.batch_size)
    steps = spec.epochs * per_epoch
    step = make_expert_step(spec, flat.apply, data.normalize)
    draw = lambda number, expert, schedule: (schedule[number],) * 2
    tables = [to_device(data.train_images), jnp.asarray(data.train_labels)]
    causes = dict.fromkeys(("loss", "state"), f"{where}.learning_rate ({spec.learning_rate}); lower it")
    loop = Loop(step, (0, 0), run.steps_per_dispatch, draw, causes=causes, limit=limit_bytes(run.memory))
    for expert in range(growing.done // rows_each, spec.count):
        first = expert * rows_each
        if growing.done == first:
            growing.append(np.asarray(flat.init(step_key(spec.seed, Stream.EXPERT_INIT, expert)))[None])
        schedule = batch_schedule(expert_keys(spec.seed, expert)[0], num_rows, spec.batch_size, steps)
        saves = _Epochs(growing, per_epoch, first)
        try:
            loop.run(
                jnp.array(growing.rows[growing.done - 1])[None],
                steps,
                (jnp.asarray([expert]), schedule[None]),
                tables=tables,
                display=display,
                name=f"{growing.file.stem}/{expert}",
                start=saves.latest,
                metrics=metrics,
                # Whole epochs alone are resumed.
                log_every=per_epoch,
                checkpoints=saves,
            )
        except TooLarge as error:
            raise TooLarge(f"experts: {error}; lower {where}.batch_size ({spec.batch_size})") from error


def expert_keys(seed: int, expert: int | Array) -> Array:
    """Return the keys of an expert's training: that of its batches, and that of what happens to them."""
    return jax.random.split(step_key(seed, Stream.EXPERT_STEP, expert))


def make_expert_step(spec: ExpertSpec, apply: Callable[[Array, Array], Array], normalize: Callable[[Array], Array]) -> Any:
    """Return the step (parameters "p", step number, (uint8 images, labels), expert, schedule) -> (parameters, metrics)."""

    def step(params: Array, number: Array, batch: Sequence[Array], expert: Array, schedule: Array) -> tuple[Array, dict[str, Array]]:
        images, labels = normalize(batch[0]), batch[1]
        key = jax.random.fold_in(expert_keys(spec.seed, expert)[1], number)
        images = diff_augment(key, images, spec.augment, siamese=False, align_corners=True)

        def loss_fn(params: Array) -> tuple[Array, Array]:
            outputs = apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(), outputs

        (loss, outputs), direction = jax.value_and_grad(loss_fn, has_aux=True)(params)
        if spec.optimizer == "gsam":
            gradient = lambda params: jax.grad(loss_fn, has_aux=True)(params)[0]
            direction = gsam_direction(gradient, params, direction, rho=spec.rho, alpha=spec.alpha)
        accuracy = jnp.mean(jnp.argmax(outputs, -1) == labels)
        return params - spec.learning_rate * direction, {"loss": loss, "accuracy": accuracy}

    return step


def read_experts(spec: ExpertSpec, where: str, flat: FlatLearner, growing: GrowingFile) -> None:
    """Write published trajectories: of a file's list of them, each is a list of epochs, and an epoch the list of PyTorch's parameters."""
    rows_each = spec.epochs + 1
    for file in trajectory_files(spec.files, f"{where}.files"):
        trajectories = read_torch(file)
        refuse = partial(_refuse, file, where)
        if not isinstance(trajectories, list):
            refuse(f"holds an object of type {type(trajectories).__name__}, expected a list of trajectories")
        for trajectory in trajectories[: spec.count - growing.done // rows_each]:
            if not isinstance(trajectory, list) or len(trajectory) != rows_each:
                found = f"{len(trajectory)} snapshots" if isinstance(trajectory, list) else f"type {type(trajectory).__name__}"
                refuse(f"has a trajectory of {found}, expected {rows_each}: {where}.epochs ({spec.epochs}) and the beginning; correct it")
            for snapshot in trajectory:
                growing.append(np.asarray(_flat_snapshot(spec, flat, snapshot, refuse))[None])
        if growing.done == len(growing.rows):
            return
    raise DataError(
        f"{where}.files ({spec.files}) have {growing.done // rows_each} trajectories, expected {where}.count = {spec.count}; lower that"
    )


def _flat_snapshot(spec: ExpertSpec, flat: FlatLearner, snapshot: Any, refuse: Callable[[str], None]) -> Array:
    try:
        names = parameter_names(spec.net.net, flat.shapes)
        if not isinstance(snapshot, list) or len(snapshot) != len(names):
            found = f"{len(snapshot)} tensors" if isinstance(snapshot, list) else f"type {type(snapshot).__name__}"
            raise ValueError(f"it has a snapshot of {found}, expected a list of the {len(names)} parameters of {spec.net.net}")
        params = flat.flatten(variables_from_torch(spec.net.net, dict(zip(names, snapshot, strict=True)), flat.shapes))
        if not np.isfinite(params).all():
            raise ValueError("it has a snapshot with NaN or infinity; leave its file out")
        return params
    except ValueError as error:
        refuse(f"does not fit the network: {error}")
        raise


def _refuse(file: Path, where: str, problem: str) -> None:
    raise DataError(printable(f"{where}.files: {file} {problem}"))
