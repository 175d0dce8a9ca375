"""The processes that decode images."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from ssdd_jax.cores import available_cores
from ssdd_jax.progress import Display


def num_workers() -> int:
    """Return how many processes decode: one per core that this process may use."""
    return available_cores()


@contextmanager
def pool(is_large: bool, display: Display) -> Iterator[Callable[..., Future]]:
    """Yield a function that runs another one in this process or, where there is much to do, in worker processes."""

    def here(function: Callable[..., Any], *args: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args))
        return future

    count = num_workers() if is_large else 1
    if count > 1 and (program := _unimportable_program()):
        display.print(f"preparing in one process: others could not import the program from {program}; run it from a file to use {count}")
        count = 1
    if count == 1:
        yield here
        return
    # Spawned, not forked: forked processes would inherit the state of threads that the caller's libraries have started.
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_ignore_signals) as executor:
        try:
            yield executor.submit
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _unimportable_program() -> str:
    """Return what the running program was read from, or '' if spawned processes, which import it by its path, would find it."""
    main = sys.modules["__main__"]
    # Without a path (python -c, a notebook) nothing is imported; with a spec (python -m) it is imported by its name.
    file = getattr(main, "__file__", None)
    return "" if file is None or getattr(main, "__spec__", None) is not None or os.path.isfile(file) else str(file)


def _ignore_signals() -> None:
    """Leave Ctrl-C and SIGTERM, which may reach all processes of a group, to the parent process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
