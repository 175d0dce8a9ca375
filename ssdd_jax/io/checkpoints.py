"""Checkpoints of a state, through Orbax."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from ssdd_jax.errors import InputError

KEEP = 2
STATE = "state"


def _leaves(state: Any) -> dict[str, Any]:
    """Name every leaf by its path, so that a checkpoint holds plain arrays and none of our types."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


class Checkpoints:
    """The checkpoints of one stage, the newest `KEEP` of them, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
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

    def save(self, step: int, state: Any) -> None:
        """Save a state; one of the same step that is there already stays."""
        if self.latest != step:
            self._checkpointer.save_checkpointables(step, {STATE: _leaves(state)})

    def restore(self, template: Any) -> tuple[int, Any] | None:
        """Return the newest checkpoint as (step, state like `template`), or None when there is none.

        Raises:
            InputError: its leaves are not those of `template`.
        """
        step = self.latest
        if step is None:
            return None
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
        return step, jax.tree.unflatten(structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths])
