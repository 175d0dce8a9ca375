"""Checkpoints of a state, through Orbax."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.files import file_digest, json_digest, write_json

KEEP = 2
STATE = "state"


def _leaves(state: Any) -> dict[str, Any]:
    """Name every leaf by its path, so that a checkpoint holds plain arrays and none of our types."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class Checkpoints:
    """The checkpoints of one stage, the newest `KEEP` of them, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.notes: dict[str, Any] = {}
        """The notes of the checkpoint that `restore` has returned."""
        preserve = ocp.training.preservation_policies.LatestN(KEEP)
        # Decided here and now, not by the library: whoever calls save wants it saved.
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(), save_decision_policy=always, preservation_policy=preserve, cleanup_tmp_directories=True
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, notes: dict[str, Any] | None = None) -> None:
        """Save a state, and then the digests of its files with some JSON notes; one of the same step that is there already stays.

        Raises:
            StorageError: it cannot be written, for lack of space for instance; earlier checkpoints are as they were.
        """
        if self.latest == step:
            return
        try:
            self._checkpointer.save_checkpointables(step, {STATE: _leaves(state)})
            # Orbax verifies no bytes: a file with a changed bit would load as other numbers.
            files, notes = _file_digests(self.folder / str(step)), notes or {}
            write_json(self._digests(step), {"files": files, "notes": notes, "sha256": json_digest([files, notes])})
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"cannot save a checkpoint in {self.folder}: {reason}; free space and run the same command again") from error
        for file in self.folder.glob("*.sha256.json"):
            if not (self.folder / file.name.partition(".")[0]).is_dir():
                file.unlink()

    def restore(self, template: Any, warn: Callable[[str], None] = lambda line: None) -> tuple[int, Any] | None:
        """Return the newest whole checkpoint as (step, state like `template`), or None when there is none.

        One whose saving was cut off is removed. One that is damaged is set aside under another name, and the one before it is taken.

        Args:
            template: a state of the expected leaves.
            warn: is told of damaged checkpoints, a line each.

        Raises:
            InputError: its leaves are not those of `template`.
            StorageError: there are checkpoints, and none of them is whole.
        """
        damaged = ""
        while (step := self.latest) is not None:
            where = self.folder / str(step)
            reason = self._damage(step)
            if reason == "":
                self.notes = json.loads(self._digests(step).read_bytes())["notes"]
                return step, self._load(step, template)
            if reason is None:
                shutil.rmtree(where)
                self._checkpointer.reload()
                continue
            aside = where.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            where.rename(aside)
            self._checkpointer.reload()
            damaged = f"checkpoint {where} is damaged ({reason}) and now called {aside.name}"
            warn(f"{damaged}; {'none is left' if self.latest is None else f'going on from {self.latest}'}")
        if damaged:
            raise StorageError(f"no whole checkpoint is left in {self.folder}: {damaged}; delete that folder to start this stage again")
        return None

    def _digests(self, step: int) -> Path:
        return self.folder / f"{step}.sha256.json"

    def _damage(self, step: int) -> str | None:
        """Return what is wrong with a checkpoint's files, "" if nothing is, or None where saving it was cut off."""
        if not self._digests(step).is_file():
            return None
        try:
            about = json.loads(self._digests(step).read_bytes())
            expected, notes, digest = about["files"], about["notes"], about["sha256"]
        except (ValueError, LookupError, TypeError):
            return f"{self._digests(step).name} cannot be read"
        if digest != json_digest([expected, notes]):
            return f"{self._digests(step).name} is not as it was saved"
        found = _file_digests(self.folder / str(step))
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return f"{wrong[0]} is not as it was saved" if wrong else ""

    def _load(self, step: int, template: Any) -> Any:
        """Return the state of a whole checkpoint."""
        where = self.folder / str(step)
        expected = {name: jnp.asarray(leaf) for name, leaf in _leaves(template).items()}
        saved = self._checkpointer.checkpointables_metadata(step).metadata[STATE]
        for name in sorted(saved.keys() ^ expected.keys()):
            raise InputError(f"checkpoint {where}: {name} is not in both the checkpoint and this run; use another --workdir")
        for name, leaf in expected.items():
            found, wanted = (tuple(saved[name].shape), saved[name].dtype), (leaf.shape, leaf.dtype)
            if found != wanted:
                raise InputError(f"checkpoint {where}: {name} has (shape, dtype) {found}, expected {wanted}; use another --workdir")
        abstract = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in expected.items()}
        leaves = self._checkpointer.load_checkpointables(step, {STATE: abstract})[STATE]
        paths, structure = jax.tree_util.tree_flatten_with_path(template)
        return jax.tree.unflatten(structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths])


def _file_digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
