"""The processes of one run: which of them writes, what they agree on, and how they end together.

Process 0 writes, prints and evaluates. The others run the loops with it, and wait while it works alone. With a single process, nothing
here does anything.

A process that ends before the run is done leaves a note with the coordination service; a thread in every process watches for it, so that
all end with the same exit status. A process that dies leaves no note: the others notice through failing collectives, or through jax,
which aborts a process that misses another one's heartbeats.
"""

import _thread
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import jax
from jax.experimental import multihost_utils

from ssdd_jax import compat
from ssdd_jax.errors import InputError, Status
from ssdd_jax.runtime import stop

STATUS = Status.LOST

POLL_S = 0.25
# Seconds that a process may take to end on its own once another has ended; it may have a checkpoint to write.
GRACE_S = 60.0
# Seconds that process 0, which runs the coordination service, waits for the others to end.
LINGER_S = 20.0
# Seconds until a file must be visible on another host.
SEEN_S = 20.0
TOKEN_FILE = ".processes"
# Words in jax's errors when another process is gone: from collectives between CPUs, between GPUs, and from the coordination service.
GONE = re.compile(r"gloo|nccl|connection|peer|socket|coordination|heartbeat|unavailable|deadline", re.IGNORECASE)
NOTE = "ssdd_jax/note"


class Lost(RuntimeError):
    """Another process of the run is gone; the message is one line."""

    status = STATUS


class _State:
    # Number of processes; asking jax would initialize its devices.
    count = 1
    alone = False
    where = ""
    waits = 0
    handler: Any = None


def several() -> bool:
    """Return whether this process currently works together with others."""
    return not _State.alone and _State.count > 1


def is_writer() -> bool:
    """Return whether this process writes, prints and evaluates."""
    return _State.count == 1 or jax.process_index() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context the writer works on its own."""
    _State.alone = True
    try:
        yield
    finally:
        _State.alone = False


def is_alone() -> bool:
    """Return whether this process is one of several, but currently works on its own."""
    return _State.alone and _State.count > 1


def report_position(step: int, name: str) -> None:
    """Record how far the run has got, for the message about a lost process."""
    _State.where = f" at step {step} of {name}"


def connect(where: tuple[str, int, int] | None, heartbeat_s: int) -> None:
    """Join the other processes; call it before anything else of jax.

    Args:
        where: the coordinator's address, the number of processes and the index of this one; None asks the cluster.
        heartbeat_s: see `DevicesSpec`.

    Raises:
        InputError: the others cannot be joined.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    try:
        compat.connect(heartbeat_s, **({} if where is None else dict(zip(names, where, strict=True))))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        outside = "outside a TPU pod, Slurm and Open MPI give HOST:PORT,NUM,ID"
        hint = outside if where is None else "check that all of them are started and can reach that address"
        raise InputError(f"--distributed: cannot join the other processes ({reason}); {hint}") from error
    _State.count = jax.process_count()
    if _State.count > 1:
        _on_abort()
        threading.Thread(target=_watch, name="hosts", daemon=True).start()


def agree(tree: Any) -> Any:
    """Return the writer's values of a tree of numbers and arrays in every process."""
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree


def wait_for_writer(stoppable: bool = True) -> None:
    """Wait, however long it takes, until the writer gets here too.

    Raises:
        Stopped: this process was asked to stop, and the wait is `stoppable`.
    """
    if not several():
        return
    _State.waits += 1
    key = f"ssdd_jax/wait/{_State.waits}"
    if is_writer():
        compat.coordinator().key_value_set(key, "done")
        return
    # Polled, since no signal is handled inside a blocking call of the client.
    while _get(key) is None:
        if stoppable and stop.requested():
            raise stop.Stopped("stopped; run the same command to go on")
        time.sleep(POLL_S)


@contextmanager
def sharing(workdir: Path) -> Iterator[None]:
    """Check that all processes see the same folder as their workdir.

    Raises:
        InputError: one of them sees another folder.
    """
    if not several():
        yield
        return
    file, key = workdir / TOKEN_FILE, "ssdd_jax/token"
    if is_writer():
        token = uuid4().hex
        file.write_text(token)
        compat.coordinator().key_value_set(key, token)
    wait_for_writer()
    token, deadline = _get(key), time.monotonic() + SEEN_S
    while _content(file) != token:
        if time.monotonic() > deadline:
            raise InputError(
                f"--workdir {workdir} of process {jax.process_index()} is not process 0's folder; give a folder that all processes share"
            )
        time.sleep(POLL_S)
    try:
        yield
    finally:
        if is_writer():
            file.unlink(missing_ok=True)


def check_alike(about: dict[str, Any]) -> None:
    """Refuse to run together with a writer whose settings, data or versions differ.

    Raises:
        InputError: this process differs from process 0.
    """
    if not several():
        return
    key, mine = "ssdd_jax/about", json.loads(json.dumps(about))
    if is_writer():
        compat.coordinator().key_value_set(key, json.dumps(mine))
    wait_for_writer()
    other = json.loads(_get(key) or "{}")
    differing = ", ".join(name for name in mine if mine[name] != other.get(name))
    if differing:
        raise InputError(
            f"process {jax.process_index()} differs from process 0 in its {differing}; start all with the same command and installation"
        )


def leave(status: int, line: str) -> None:
    """End this process and tell the others why; returns if there are no others."""
    if _State.count == 1:
        return
    with suppress(Exception):  # another process has already left a note, or none is there to read it
        compat.coordinator().key_value_set(NOTE, json.dumps({"process": jax.process_index(), "status": status, "line": line}))
    _end(status)


def lost(error: Exception) -> Lost | None:
    """Return the error to report if `error` means that another process is gone, or None if it means something else."""
    # If the lost process left a note, that note ends all of them.
    if _State.count == 1 or not isinstance(error, jax.errors.JaxRuntimeError) or not GONE.search(str(error)):
        return None
    time.sleep(4 * POLL_S)
    if (note := _note()) is not None:
        _follow(note)
    return Lost(_lost_line())


def _lost_line() -> str:
    return (
        f"another process of this run was lost{_State.where}; start all processes again with the same command: "
        "it goes on from the last checkpoint"
    )


def _get(key: str) -> str | None:
    """Return the value of a key, or None if it has none."""
    try:
        return compat.coordinator().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:
        return None


def _note() -> dict[str, Any] | None:
    note = json.loads(_get(NOTE) or "null")
    return None if note is None or note["process"] == jax.process_index() else note


def _watch() -> None:
    """End this process when another one has left."""
    while (note := _note()) is None:
        time.sleep(POLL_S)
    if note["status"] == stop.STATUS and not stop.requested():
        # As if this process had been asked to stop; unlike a signal, it does nothing once the run is over.
        _thread.interrupt_main(signal.SIGTERM)
    time.sleep(GRACE_S if note["status"] == stop.STATUS else 4 * POLL_S)
    _follow(note)


def _follow(note: dict[str, Any]) -> NoReturn:
    text = note["line"] if note["status"] == stop.STATUS else f"process {note['process']}: {note['line']}"
    os.write(2, f"{text}\n".encode(errors="replace"))
    _end(note["status"])


def _end(status: int) -> NoReturn:
    """End at once, bypassing jax's own shutdown, which waits for all processes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    with suppress(Exception):
        if is_writer() and status != STATUS:
            # The coordination service ends with this process, and any process still there would take that for a loss.
            deadline = time.monotonic() + LINGER_S
            while time.monotonic() < deadline and not all(_get(f"ssdd_jax/left/{i}") for i in range(1, _State.count)):
                time.sleep(POLL_S)
        else:
            compat.coordinator().key_value_set(f"ssdd_jax/left/{jax.process_index()}", "yes")
    os._exit(status)


def _on_abort() -> None:
    """Print one line on why jax aborts this process: jax does so in its own thread, past all of Python's handlers."""

    def handle(_: int) -> None:
        os.write(2, f"error: {_lost_line()}\n".encode(errors="replace"))
        os._exit(STATUS)

    # Stored, since it must outlive this call.
    _State.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_State.handler, ctypes.c_void_p))


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
