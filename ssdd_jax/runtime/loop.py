"""The one loop: teacher, distillation, students and probes all run through it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.pool import over_leading_axis
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.runtime import health, hosts, stop
from ssdd_jax.runtime.blas import one_blas_thread
from ssdd_jax.runtime.devices import Devices, on_cpu
from ssdd_jax.runtime.feed import Reader, Table
from ssdd_jax.runtime.memory import check_fits, in_words

# Number of dispatches after which the processes check whether any of them was asked to stop.
ASKED_AGO = 2

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


class Saves(Protocol):
    """What a loop saves its state with: `ssdd_jax.io.checkpoints.Checkpoints`, whose attributes and methods these are."""

    every: int
    notes: dict[str, Any]

    @property
    def latest(self) -> int | None:
        """Return the last step that was saved."""
        ...

    def due(self, step: int) -> bool:
        """Return whether the state after a step should be saved."""
        ...

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Save the state after a step."""
        ...

    def wait(self) -> None:
        """Return once all is saved."""
        ...


def seed_groups(seeds: Sequence[int], at_once: int) -> list[tuple[int, ...]]:
    """Return the seeds in the groups that are vmapped together."""
    size = at_once or (1 if on_cpu() else len(seeds))
    return [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]


# Jitted, or every leaf would be a program of its own.
@jax.jit
def stack(trees: Sequence[Any]) -> Any:
    """Stack equal trees along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def unstack(tree: Any) -> list[Any]:
    """Undo `stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(jax.tree.leaves(tree)[0].shape[0])]


class Loop:
    """A step, jitted for a group of seeds and for several steps per dispatch; the state is donated.

    Args:
        step: (state, step number, *args) -> (state, metrics), for one seed.
        axes: for each arg, 0 if every seed has its own (leading axis), None if they share it.
        steps_per_dispatch: see `RunSpec`.
        draw: (step number, *args) -> a tuple of integer arrays, for one seed: the rows of each of the tables that `run`
            is given. The step is then (state, step number, batch, *args), where batch holds these rows of each table.
        watch: state -> the part of it that must stay finite, besides the metrics; all of it by default.
        causes: likely cause and remedy, by the name of a metric or of a part of the watched state, in the order in which
            a step computes them.
        limit: bytes of memory above which a step is refused; None refuses none.
        devices: the mesh that the loop runs on; None for one device. Batches are sharded over it; every device has the full state.
    """

    def __init__(
        self,
        step: Step,
        axes: tuple[int | None, ...],
        steps_per_dispatch: int = 0,
        draw: Callable[..., tuple] | None = None,
        *,
        watch: Callable[[Any], Any] = lambda state: state,
        causes: Mapping[str, str] | None = None,
        limit: int | None = None,
        devices: Devices | None = None,
    ):
        self.causes, self.limit, self.devices = dict(causes or {}), limit, devices
        self.compiled: dict[Any, Any] = {}
        """Compiled programs, or futures of them, by the shapes of their operands."""
        self.steps_per_dispatch = steps_per_dispatch or (1 if on_cpu() else 50)
        self.draw = None if draw is None else over_leading_axis(draw, (None, *axes))

        def step_on(state, number, tables, batch, *args):
            if draw is None:
                return step(state, number, *args)
            if batch is None:
                batch = tuple(table[rows] for table, rows in zip(tables, draw(number, *args), strict=True))
            if devices is not None:
                batch = devices.shard("data", batch)
            # The barrier makes the rest compile identically wherever the batch comes from, so that the bits are the same.
            return step(state, number, jax.lax.optimization_barrier(batch), *args)

        one_step = over_leading_axis(step_on, (0, None, None, 0, *axes))

        def seeds_step(*inputs):
            state, metrics = one_step(*inputs)
            return state, (metrics, jax.vmap(lambda m, s: health.not_finite(m, watch(s)))(metrics, state))

        # However a step shards its arrays, its results are replicated on every device.
        @partial(jax.jit, static_argnums=2, donate_argnums=0, **({} if devices is None else {"out_shardings": devices.whole}))
        def dispatch(state, first, length, asked, tables, batches, *args):
            # Whether any process was asked to stop; all of them learn it from the same dispatch.
            asked = jax.tree.map(jnp.max, asked)
            if length == 1:
                state, (metrics, bad) = seeds_step(state, first, tables, batches, *args)
                return state, metrics, jax.tree.map(lambda leaf: leaf[None], bad), asked
            numbers = first + jnp.arange(length)
            state, (metrics, bad) = jax.lax.scan(lambda s, x: seeds_step(s, x[0], tables, x[1], *args), state, (numbers, batches))
            return state, jax.tree.map(lambda leaf: leaf.sum(0), metrics), bad, asked

        self.dispatch = dispatch

    def compile(self, *operands: Any) -> tuple[Any, float]:
        """Compile the dispatch for operands like these, unless that was done before, and return it with the seconds that this took.

        The operands are those of `self.dispatch`; the compiled function takes them without the third, the number of steps.

        Raises:
            TooLarge: it takes more memory than the limit.
        """
        key = _shapes(operands)
        found, started = self.compiled.get(key), time.monotonic()
        if found is not None and not isinstance(found, Future):
            return found, 0.0
        compiled = self.dispatch.lower(*operands).compile() if found is None else found.result()
        if self.limit is not None:
            check_fits(compiled, self.limit)
        self.compiled[key] = compiled
        return compiled, time.monotonic() - started

    def compile_ahead(self, *operands: Any) -> None:
        """Begin to compile what `compile` will be asked for, while this thread goes on."""
        key = _shapes(operands)
        if key not in self.compiled:
            # Traced here: a thread of its own would not have the settings of jax that hold here.
            self.compiled[key] = _compiler().submit(self.dispatch.lower(*operands).compile)

    def run(
        self,
        state: Any,
        num_steps: int,
        args: Sequence[Any],
        *,
        display: Display,
        name: str,
        tables: Sequence[Table] = (),
        start: int = 0,
        metrics: Metrics | None = None,
        log_every: int = 50,
        checkpoints: Saves | None = None,
        on_save: Callable[[int, Any], None] = lambda step, state: None,
    ) -> Any:
        """Run steps start ... num_steps - 1 and return the last state.

        If all tables are on the device, the step gathers rows from them; if any is on disk, batches are read ahead of the steps.
        Every `log_every` steps the metrics, averaged over the steps since the last time, go to `metrics` under `name`, as a list with
        one value per seed. Finiteness is checked inside the step, and read whenever something is logged or saved. `on_save` is called
        with (step, state) after a save, before the state is donated to the next step.

        Raises:
            TooLarge: a step takes more memory than the limit.
            NumericalError: a metric or the state is NaN or infinite; the batch is saved next to the metrics.
            Stopped: the run was asked to stop; the step is saved if there are `checkpoints`.
        """
        every = checkpoints.every if checkpoints is not None else 0
        if not hosts.is_writer():
            metrics = checkpoints = None
        # If no step is left, any later lines belong to another loop that goes on under the same name.
        if metrics is not None and start < num_steps:
            metrics.begin(name, start)
        # Sums since the last logged line, if the steps before this one ran in an earlier attempt.
        notes = checkpoints.notes if checkpoints is not None and start else {}
        logged = notes.get("logged", start)
        pending = [notes["sums"]] if notes.get("sums") else []
        on_device = all(isinstance(table, jax.Array) for table in tables)
        devices, put = self.devices, (lambda tree: tree) if self.devices is None else self.devices.replicate
        reader = None if on_device or self.draw is None else Reader(self.draw, tables, args, None if devices is None else devices.own_rows)
        most = self.steps_per_dispatch if reader is None else min(self.steps_per_dispatch, reader.max_steps)
        dispatches = _dispatches(start, num_steps, most, (log_every, every or num_steps))
        flags: list[tuple[int, dict[str, jax.Array]]] = []
        began, compiled, compiling = time.monotonic(), {}, 0.0

        def check() -> None:
            # Only here does the host wait for the device.
            found = health.first_bad(flags)
            flags.clear()
            if found is not None:
                raise health.NumericalError(self._diagnose(name, *found, tables, args, metrics, checkpoints))

        planned = ((first, length, None) for first, length in dispatches) if reader is None else reader.ahead(dispatches)
        state, args = hosts.agree((state, tuple(args)))
        asked_so_far: deque[jax.Array] = deque()
        state, placed_tables, placed_args = put(state), put(tuple(tables) if on_device else ()), put(args)
        with display.task(name, num_steps) as task, closing(planned), stop.deferred(), one_blas_thread():
            for first, length, batches in planned:
                if devices is not None and reader is not None:
                    batches = devices.spread_rows(batches, reader.batch_sizes, axis=1 if length == 1 else 2)
                asked = devices.of_processes(stop.requested()) if devices is not None and hosts.several() else None
                number = put(jnp.asarray(first))
                if length not in compiled:
                    compiled[length], seconds = self.compile(state, number, length, asked, placed_tables, batches, *placed_args)
                    compiling += seconds
                    if metrics is not None and seconds and len(compiled) == 1:
                        display.print(f"{name}: a step takes {in_words(compiled[length])} of memory")
                state, values, bad, asked = compiled[length](state, number, asked, placed_tables, batches, *placed_args)
                if metrics is not None and compiling and first == start:
                    jax.block_until_ready(values)
                    display.print(f"{name}: first step after {time.monotonic() - began:.1f} s, {compiling:.1f} s of it to compile")
                step = first + length
                pending.append(values)
                flags.append((first, bad))
                note = ""
                if step % log_every == 0 or step == num_steps:
                    check()
                    numbers = {key: total / (step - logged) for key, total in _sums(pending).items()}
                    pending, logged = [], step
                    note = f"loss {numbers['loss'].mean():.4g}"
                    if metrics is not None:
                        metrics.write(name, step, {key: value.tolist() for key, value in numbers.items()})
                stopping = stop.requested() if asked is None else _asked(asked_so_far, asked)
                last = step == num_steps and (every or (checkpoints is not None and checkpoints.latest is not None))
                if checkpoints is not None and (last or stopping or checkpoints.due(step)):
                    check()
                    sums = {key: total.tolist() for key, total in _sums(pending).items()} if pending else {}
                    checkpoints.save(step, state, {"logged": logged, "sums": sums})
                    on_save(step, state)
                task.advance(step, note)
                hosts.report_position(step, name)
                if stopping:
                    stop.request()
                    if checkpoints is not None:
                        # A failed save must not end the run as if it had succeeded.
                        checkpoints.wait()
                    # A process that ends would break off its share of the steps under way.
                    jax.block_until_ready(state)
                    hosts.wait_for_writer(stoppable=False)
                    line = f"stopped at step {step} of {name}; run the same command to go on"
                    raise stop.Stopped(line, state if devices is None else devices.local(state), step)
        return state if devices is None else devices.local(state)

    def _diagnose(
        self,
        name: str,
        number: int,
        place: int,
        names: list[str],
        tables: Sequence[Table],
        args: Sequence[Any],
        metrics: Metrics | None,
        checkpoints: Saves | None,
    ) -> str:
        """Return what the user should know about a step after which something is not finite, and save its batch."""
        batch = {}
        if self.draw is not None:
            drawn = [np.asarray(rows)[place] for rows in self.draw(number, *args)]
            for i, (table, rows) in enumerate(zip(tables, drawn, strict=True)):
                batch |= {f"rows_{i}": rows, f"batch_{i}": np.asarray(table[rows])}
        what, cause = health.explain(names, self.causes, batch)
        line = f"{name}: {what} at step {number + 1}; likely cause: {cause}"
        kept = checkpoints.latest if checkpoints is not None else None
        if kept is not None:
            line += f"; the last checkpoint is of step {kept}, where all was finite"
        if batch and metrics is not None:
            file = metrics.path.with_name(f"bad_batch-{name.replace('/', '-')}.npz")
            np.savez(file, allow_pickle=False, step=number + 1, seed_place=place, **batch)
            line += f"; the batch is in {file}"
        return line


@cache
def _compiler() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "compile")


def _shapes(operands: Sequence[Any]) -> Any:
    """Return what a program depends on: structure, shapes and types of the operands of `Loop.dispatch`, and its number of steps."""
    leaves, structure = jax.tree.flatten(operands)
    return structure, operands[2], *((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _asked(so_far: deque[jax.Array], asked: jax.Array) -> bool:
    """Return whether any process had been asked to stop `ASKED_AGO` dispatches ago; newer dispatches may still be running: do not wait."""
    so_far.append(asked)
    return len(so_far) > ASKED_AGO and bool(so_far.popleft())


def _sums(values: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Add up metrics in sequence, so that summing in two parts gives the same bits."""
    add = lambda total, value: {key: total[key] + np.asarray(value[key], np.float64) for key in total}
    return reduce(add, values[1:], {key: np.asarray(value, np.float64) for key, value in values[0].items()})


def _dispatches(start: int, num_steps: int, most: int, every: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first step, number of steps) of each dispatch; it ends where something is due, so that few lengths are compiled."""
    step = start
    while step < num_steps:
        stop = min([num_steps, *((step // period + 1) * period for period in every)])
        length = min(most, stop - step)
        yield step, length
        step += length


def resumable(folder: Path, state: Any, display: Display, **settings: Any) -> tuple[Checkpoints, int, Any]:
    """Open the checkpoints in `folder`, with the settings of `Checkpoints`, and return them with the newest (step, state).

    Without checkpoints, that is (0, `state`).
    """
    checkpoints = Checkpoints(folder, **settings)
    # One of several processes reads, and the loop passes on to the others what it has read. A signal waits for the loop, since Orbax would
    # turn its exception into one of its own.
    with stop.deferred():
        found = checkpoints.restore(state, lambda line: display.print(f"warning: {line}")) if hosts.is_writer() else None
    step, state = (0, state) if found is None else found
    return checkpoints, int(hosts.agree(step)), state
