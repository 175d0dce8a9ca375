"""Batches from arrays that are too large for the device: a thread reads them ahead of the steps."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from math import prod
from typing import Any

import jax
import numpy as np

from ssdd_jax.data import Concatenated, Images, OnDisk

# Dispatches that are read ahead while the device works on another one.
READ_AHEAD = 2
MAX_BYTES = 2**26

Table = jax.Array | Images | Concatenated
"""Rows on the device, or on disk."""


def to_device(images: Images) -> jax.Array | Images:
    """Return rows in memory as an array on the device; rows on disk, memory-mapped ones among them, stay there."""
    if isinstance(images, np.memmap):
        return OnDisk(images)
    return jax.numpy.asarray(images) if isinstance(images, np.ndarray) else images


class Reader:
    """Reads the batches that a loop would gather on the device.

    Args:
        draw: (step number, *args) -> a tuple of integer arrays "S b" or "S b ...", the rows of each table with a leading axis of seeds.
        tables: arrays "N ...".
        args: further arguments of `draw`.
        own_rows: batch size -> which of a batch's rows to read, along the first axis of a seed's draw; None reads all of them.
    """

    def __init__(
        self,
        draw: Callable[..., tuple[Any, ...]],
        tables: Sequence[Table],
        args: Sequence[Any],
        own_rows: Callable[[int], np.ndarray] | None = None,
    ):
        self.tables = [np.asarray(table) if isinstance(table, jax.Array) else table for table in tables]
        self.args = jax.tree.map(np.asarray, tuple(args))
        self.draw = jax.jit(draw)
        drawn = jax.eval_shape(draw, 0, *self.args)
        self.batch_sizes = tuple(rows.shape[1] for rows in drawn)
        self.own_rows = [slice(None) if own_rows is None else own_rows(size) for size in self.batch_sizes]
        step_bytes = sum(
            prod(rows.shape) * prod(table.shape[1:]) * table.dtype.itemsize for table, rows in zip(self.tables, drawn, strict=True)
        )
        self.max_steps = max(1, MAX_BYTES // step_bytes)

    def read(self, first: int, length: int) -> tuple[np.ndarray, ...]:
        """Return this process's rows of a dispatch's batches, "S b ..." for one step and "L S b ..." for several."""
        # Drawn on the CPU: on an accelerator the draw would wait for earlier steps. The bits are the same.
        with _on_cpu():
            drawn = [self.draw(step, *self.args) for step in range(first, first + length)]
        batches = [
            tuple(table[np.asarray(rows)[:, own]] for table, rows, own in zip(self.tables, step, self.own_rows, strict=True))
            for step in drawn
        ]
        return batches[0] if length == 1 else tuple(np.stack(parts) for parts in zip(*batches, strict=True))

    def ahead(self, dispatches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, tuple[np.ndarray, ...]]]:
        """Yield (first, length, batches) of every dispatch in order, reading those that follow in another thread."""
        waiting: deque = deque()
        with ThreadPoolExecutor(1, "reader") as executor:
            for first, length in dispatches:
                waiting.append((first, length, executor.submit(self.read, first, length)))
                if len(waiting) > READ_AHEAD:
                    first, length, future = waiting.popleft()
                    yield first, length, future.result()
            for first, length, future in waiting:
                yield first, length, future.result()


def _on_cpu() -> Any:
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:  # the CPU is not among the platforms that jax may use
        return nullcontext()
