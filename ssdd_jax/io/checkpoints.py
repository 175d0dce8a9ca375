"""Checkpoints of a state, through Orbax.

A checkpoint is a folder named by its step, which Orbax writes, and STEP.sha256.json next to it, which is written last and completes
it: the digests of its files and leaves, which Orbax does not keep, and what a run needs to know besides the state.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
from orbax.checkpoint import v1 as ocp

from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.files import file_digest, json_digest, reserve, sha256, write_json

STATE = "state"
# What Orbax needs besides the arrays, at most.
OVERHEAD_BYTES = 2**18
# If these differ in `about`, the bits differ.
BITS = ("versions", "device")


def _leaves(state: Any) -> dict[str, Any]:
    """Return every leaf by its path, so that a checkpoint holds plain arrays and none of our types."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class Checkpoints:
    """The checkpoints of one stage in one folder, written by a thread while the stage goes on.

    Args:
        folder: made when the first one is saved.
        every: steps between two checkpoints, see `due`; 0 saves by time only, and not at the end.
        minutes: longest time from one checkpoint to the next; 0 saves by steps only.
        keep: how many of the newest are kept, at least 2: one may turn out to be damaged.
        keep_every: checkpoints whose step is a multiple of this are kept as well; 0 keeps none of them.
        about: JSON values to record in each: settings, versions, device, the data's fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int = 1000,
        minutes: float = 0.0,
        keep: int = 2,
        keep_every: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        if keep < 2:
            raise InputError(f"keep is {keep}, expected at least 2 checkpoints: the newest may turn out to be damaged")
        self.folder, self.every, self.minutes, self.keep, self.keep_every = folder, every, minutes, keep, keep_every
        self.about: dict[str, Any] = dict(about or {})
        self.notes: dict[str, Any] = {}
        """The notes of the checkpoint that `restore` returned."""
        self.seconds_before = 0.0
        """How long the stage had run when that checkpoint was saved."""
        self._opened = self._last = time.monotonic()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except StorageError:
            # An error already being raised says more.
            if kind is None:
                raise
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    @property
    def steps(self) -> list[int]:
        """Return the steps of all existing checkpoints, damaged or not, in order."""
        self.wait()
        return self._steps()

    def _steps(self) -> list[int]:
        return sorted(int(entry.name) for entry in self.folder.glob("*") if is_step(entry))

    @property
    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        steps = self.steps
        return steps[-1] if steps else None

    def due(self, step: int) -> bool:
        """Return whether the state after `step` steps should be saved."""
        by_steps = self.every > 0 and step % self.every == 0
        return by_steps or 0 < self.minutes * 60 <= time.monotonic() - self._last

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Save a state with some JSON notes; an existing checkpoint of the same step is kept.

        Returns once the state is copied, so that its buffers may be donated. An error in writing it is raised by the next `save`, by
        `wait`, or on leaving the context.

        Raises:
            StorageError: the previous one could not be written, for instance for lack of space; earlier ones are untouched.
        """
        if step in self.steps:  # waits for the previous one
            return
        leaves = {name: np.array(leaf) for name, leaf in _leaves(state).items()}
        notes = {**(notes or {}), "seconds": round(self.seconds_before + time.monotonic() - self._opened, 3)}
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending = self._writer.submit(self._write, step, leaves, notes)
        self._last = time.monotonic()

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            StorageError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"cannot save a checkpoint in {self.folder}: {reason}; free space and run the same command again") from error

    def restore(self, template: Any, warn: Callable[[str], None] = lambda line: None) -> tuple[int, Any] | None:
        """Return the newest intact checkpoint as (step, state like `template`), or None if there is none.

        A checkpoint whose saving was interrupted is removed. A damaged one is set aside under another name, and the previous one is taken.

        Args:
            template: a state with the expected leaves.
            warn: called with one line for each damaged checkpoint, and if other versions wrote the checkpoint.

        Raises:
            InputError: its leaves are not those of `template`.
            StorageError: there are checkpoints, but none of them is intact.
        """
        damaged = ""
        self._remove_left_over(warn)
        while (step := self.latest) is not None:
            where = self.folder / str(step)
            reason = damage(where)
            if not reason:
                record = _read_record(where)
                state, reason = self._load(step, record, template)
                if not reason:
                    self.notes = record["notes"]
                    self.seconds_before = self.notes["seconds"]
                    for line in _other_bits(where, record["about"], self.about):
                        warn(line)
                    return step, state
            aside = where.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            where.rename(aside)
            damaged = f"checkpoint {where} is damaged ({reason}) and was renamed to {aside.name}"
            warn(f"{damaged}; {'none is left' if self.latest is None else f'going on from {self.latest}'}")
        if damaged:
            raise StorageError(f"no intact checkpoint is left in {self.folder}: {damaged}; delete that folder to start this stage again")
        return None

    def _remove_left_over(self, warn: Callable[[str], None]) -> None:
        """Remove what a process has left that ended while saving or removing a checkpoint."""
        for step in self.steps:
            if not record_file(self.folder / str(step)).is_file():
                warn(f"checkpoint {self.folder / str(step)} has no {step}.sha256.json, as when saving is interrupted; it is removed")
                shutil.rmtree(self.folder / str(step))
        for entry in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(entry)
        for file in self.folder.glob("*.sha256.json"):
            if not (self.folder / file.name.partition(".")[0]).is_dir():
                file.unlink()

    def _write(self, step: int, leaves: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        folder = self.folder / str(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        reserve(self.folder, sum(leaf.nbytes for leaf in leaves.values()) + OVERHEAD_BYTES)
        digests = {name: _leaf_digest(leaf) for name, leaf in leaves.items()}
        # Orbax cannot save arrays without elements.
        with _quiet():
            _save(folder.absolute(), {name: leaf for name, leaf in leaves.items() if leaf.size})
        record = {"files": _file_digests(folder), "leaves": digests, "notes": notes, "about": self.about}
        write_json(record_file(folder), {**record, "sha256": json_digest(record)})
        for old in self._steps()[: -self.keep]:
            if not (self.keep_every and old % self.keep_every == 0):
                # Without its record it does not count as complete, however far its removal gets.
                record_file(self.folder / str(old)).unlink(missing_ok=True)
                shutil.rmtree(self.folder / str(old))

    def _load(self, step: int, record: Mapping[str, Any], template: Any) -> tuple[Any, str]:
        """Return the state of a checkpoint whose files are intact, and what is wrong with its leaves, or ""."""
        where, saved, expected = self.folder / str(step), record["leaves"], _leaves(template)
        for name in sorted(saved.keys() ^ expected.keys()):
            raise InputError(f"checkpoint {where}: {name} is not in both the checkpoint and this run; use another --workdir")
        for name, leaf in expected.items():
            found, wanted = (tuple(saved[name]["shape"]), saved[name]["dtype"]), (jnp.shape(leaf), str(leaf.dtype))
            if found != wanted:
                raise InputError(f"checkpoint {where}: {name} has (shape, dtype) {found}, expected {wanted}; use another --workdir")
        empty = {name: np.zeros(jnp.shape(leaf), leaf.dtype) for name, leaf in expected.items()}
        with _quiet(), _alone():
            loaded = ocp.load_checkpointables(where.absolute(), {STATE: {name: leaf for name, leaf in empty.items() if leaf.size}})[STATE]
        leaves = {name: loaded[name] if leaf.size else leaf for name, leaf in empty.items()}
        for name, leaf in leaves.items():
            if _leaf_digest(leaf) != saved[name]:
                return None, f"{name} has changed since it was saved"
        paths, structure = jax.tree_util.tree_flatten_with_path(template)
        # Copied: jax may use numpy's memory directly, and that must not be given away with a donated state.
        return jax.tree.unflatten(structure, [jnp.array(leaves[jax.tree_util.keystr(path)]) for path, _ in paths]), ""


def is_step(entry: Path) -> bool:
    """Return whether an entry of a stage's folder is a checkpoint, damaged or not."""
    return entry.name.isdecimal() and entry.name == str(int(entry.name)) and entry.is_dir()


def record_file(folder: Path) -> Path:
    """Return the file with the digests of the checkpoint in `folder`."""
    return folder.with_name(f"{folder.name}.sha256.json")


def damage(folder: Path) -> str:
    """Return what is wrong with the files of the checkpoint in `folder`, or "" if nothing is."""
    try:
        record = _read_record(folder)
        digest, expected = record.pop("sha256"), record["files"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"{record_file(folder).name} cannot be read"
    if digest != json_digest(record):
        return f"{record_file(folder).name} has changed since it was saved"
    found = _file_digests(folder)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{wrong[0]} has changed since it was saved" if wrong else ""


def _save(folder: Path, leaves: dict[str, np.ndarray]) -> None:
    """Write a checkpoint's arrays; among several processes, the one that calls it writes on its own."""
    if jax.process_count() == 1:
        ocp.save_checkpointables(folder, {STATE: leaves}, overwrite=True)
        return
    # Orbax's newer interface waits for all processes in any case; it can read what this one writes.
    options = _of_this_process()
    arrays = orbax.checkpoint.PyTreeCheckpointHandler(multiprocessing_options=options)
    both = orbax.checkpoint.CompositeOptions(multiprocessing_options=options)
    handler = orbax.checkpoint.CompositeCheckpointHandler(composite_options=both, **{STATE: arrays})
    with orbax.checkpoint.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        checkpointer.save(folder, args=orbax.checkpoint.args.Composite(**{STATE: orbax.checkpoint.args.PyTreeSave(leaves)}), force=True)


def _alone() -> AbstractContextManager:
    """Keep Orbax from waiting for the other processes of a run while it reads."""
    return nullcontext() if jax.process_count() == 1 else ocp.Context(multiprocessing_options=_of_this_process())


def _of_this_process() -> Any:
    me = jax.process_index()
    return orbax.checkpoint.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax from logging what it raises anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_record(folder: Path) -> dict[str, Any]:
    return json.loads(record_file(folder).read_bytes())


def _file_digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def _leaf_digest(leaf: np.ndarray) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": sha256(np.ascontiguousarray(leaf).tobytes())}


def _other_bits(where: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line if a checkpoint was written under conditions that give other bits."""
    flat = lambda about: {
        name: value for key in BITS for name, value in (about[key].items() if isinstance(about.get(key), dict) else [(key, about.get(key))])
    }
    old, new = flat(then), flat(now)
    changed = ", ".join(f"{name} {old[name]} -> {new[name]}" for name in old.keys() & new.keys() if old[name] != new[name])
    return [f"checkpoint {where} was written under other conditions ({changed}); going on, but not to the same bits"] if changed else []
