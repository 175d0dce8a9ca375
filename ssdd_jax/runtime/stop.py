"""Stopping on request: SIGTERM or Ctrl-C end a run at a point where nothing is lost."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ssdd_jax.errors import InputError, Status

STATUS = Status.STOPPED


class Stopped(BaseException):
    """The run was asked to stop; the message says how to go on. Not an Exception, so that no handler takes it for an error.

    Attributes:
        state: what the loop that was stopped had got to; None outside a loop.
        step: after how many steps.
    """

    def __init__(self, message: str, state: Any = None, step: int = 0):
        super().__init__(message)
        self.state, self.step = state, step


class _Request:
    seen = False
    deferred = 0


def _handle(number: int, frame: FrameType | None) -> None:
    if _Request.seen:
        # A user who asks twice does not want to wait for a checkpoint.
        os._exit(STATUS)
    _Request.seen = True
    if not _Request.deferred:
        raise Stopped("stopped; run the same command to go on")


@contextmanager
def on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Stopped`, at once or, inside `deferred`, when the code asks; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGINT)}
    hook = sys.unraisablehook

    def again(unraisable: Any) -> None:
        # An exception raised by a signal during an object's finalization is swallowed by Python, and the signal would be lost.
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)
            return
        _Request.seen = False
        leaving = threading.Event()

        def send() -> None:
            # Not before this hook, in which it would be swallowed as well, is left, even on a machine that is busy.
            leaving.wait()
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send, daemon=True).start()
        leaving.set()

    sys.unraisablehook = again
    try:
        yield
    except Exception as error:
        # Orbax, for one, makes an error of its own of whatever is raised within it.
        stopped = None if isinstance(error, InputError | OSError) else _stop_behind(error)
        if stopped is None:
            raise
        raise stopped from None
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _Request.seen = False


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """Return the stop that an exception was raised from or instead of, if any."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def on_interrupt() -> Iterator[None]:
    """Let an interrupt (Ctrl-C, a notebook's stop button) inside `deferred` make `requested` true, as `request` does; reset it at the end.

    For programs: outside `deferred`, or the second time, it is the KeyboardInterrupt that it would have been.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _Request.seen or not _Request.deferred:
            raise KeyboardInterrupt
        _Request.seen = True

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, handle) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
        _Request.seen = False


@contextmanager
def deferred() -> Iterator[None]:
    """Inside this context a signal only makes `requested` true."""
    _Request.deferred += 1
    try:
        yield
    finally:
        _Request.deferred -= 1


def request() -> None:
    """Ask the run to stop, as a signal does within `deferred`."""
    _Request.seen = True


def requested() -> bool:
    """Return whether the run was asked to stop."""
    return _Request.seen
