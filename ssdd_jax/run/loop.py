"""The one loop: teacher, distillation, students and probes all run through it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.pool import over_leading_axis
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.run.progress import Display

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


class NumericalError(ArithmeticError):
    """A number went bad; the message is one line."""


def on_cpu() -> bool:
    """Return whether steps run on a CPU."""
    return jax.default_backend() == "cpu"


def seed_groups(seeds: Sequence[int], at_once: int) -> list[tuple[int, ...]]:
    """Return the seeds in the groups that are vmapped together."""
    size = at_once or (1 if on_cpu() else len(seeds))
    return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


def stack(trees: Sequence[Any]) -> Any:
    """Stack equal trees along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any) -> list[Any]:
    """Undo `stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(jax.tree.leaves(tree)[0].shape[0])]


class Loop:
    """A step, jitted for a group of seeds and for several steps a dispatch; the state is donated.

    Args:
        step: (state, step number, *args) -> (state, metrics), for one seed.
        axes: of the args: 0 where every seed has its own (leading axis), None where they share it.
        steps_per_dispatch: see `RunSpec`.
    """

    def __init__(self, step: Step, axes: tuple[int | None, ...], steps_per_dispatch: int = 0):
        self.steps_per_dispatch = steps_per_dispatch or (1 if on_cpu() else 50)
        seeds_step = over_leading_axis(step, (0, None, *axes))

        @partial(jax.jit, static_argnums=2, donate_argnums=0)
        def dispatch(state, first, length, *args):
            if length == 1:
                return seeds_step(state, first, *args)
            state, metrics = jax.lax.scan(lambda s, i: seeds_step(s, i, *args), state, first + jnp.arange(length))
            return state, jax.tree.map(lambda leaf: leaf.sum(0), metrics)

        self.dispatch = dispatch

    def run(
        self,
        state: Any,
        num_steps: int,
        args: Sequence[Any],
        *,
        display: Display,
        name: str,
        start: int = 0,
        metrics: Metrics | None = None,
        log_every: int = 50,
        checkpoints: Checkpoints | None = None,
        checkpoint_every: int = 1000,
    ) -> Any:
        """Run steps start ... num_steps - 1 and return the last state.

        Every `log_every` steps the metrics, averaged over the steps since the last time, are checked and go to `metrics`
        under `name`, as a list with one value a seed.

        Raises:
            NumericalError: a metric is NaN or infinite.
        """
        if metrics is not None:
            metrics.begin(name, start)
        step = logged = start
        pending = []
        with display.task(name, num_steps) as task:
            while step < num_steps:
                # A dispatch ends where something is due, so that the lengths that are compiled are few.
                stop = min([num_steps, *((step // every + 1) * every for every in (log_every, checkpoint_every))])
                length = min(self.steps_per_dispatch, stop - step)
                state, values = self.dispatch(state, jnp.asarray(step), length, *args)
                step += length
                pending.append(values)
                note = ""
                if step % log_every == 0 or step == num_steps:
                    # Only here does the host wait for the device.
                    numbers = {key: np.sum([np.asarray(v[key], np.float64) for v in pending], 0) / (step - logged) for key in values}
                    pending, logged = [], step
                    self._check(numbers, step, name, checkpoints)
                    note = f"loss {numbers['loss'].mean():.4g}"
                    if metrics is not None:
                        metrics.write(name, step, {key: value.tolist() for key, value in numbers.items()})
                if checkpoints is not None and (step % checkpoint_every == 0 or step == num_steps):
                    checkpoints.save(step, state)
                task.advance(step, note)
        return state

    @staticmethod
    def _check(numbers: dict[str, np.ndarray], step: int, name: str, checkpoints: Checkpoints | None) -> None:
        for key, value in numbers.items():
            if not np.isfinite(value).all():
                kept = checkpoints.latest if checkpoints is not None else None
                last = f"; the last checkpoint is of step {kept}" if kept is not None else ""
                raise NumericalError(f"{name}: {key} is {value.tolist()} at step {step}; lower the learning rate or raise the ridge{last}")


def resumable(folder: Path, state: Any) -> tuple[Checkpoints, int, Any]:
    """Open the checkpoints in `folder` and return them with the newest (step, state), or (0, `state`) when there is none."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(state)
    return (checkpoints, 0, state) if found is None else (checkpoints, *found)
