"""Files that are either whole or not there."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another run is using {folder}; wait for it to end, or give another folder") from error
            except OSError:  # some network file systems have no locks
                pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that could not be written: a full disk does not say which one it is about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `json_bytes`."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return indented JSON; NaN and infinity are refused, since JSON has neither."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def reserve(folder: Path, size: int) -> None:
    """See that so many bytes can be written in a folder, whatever limits them: the disk, a quota, or the process.

    Raises:
        OSError: they cannot.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"no space left: {size / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free")
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def allocate_npy(file: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """Make an .npy file of zeros whose space is reserved: a map of a file without space ends the process, not with an error.

    Raises:
        OSError: there is not enough space.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    reserve(file.parent, size)
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, read a block at a time."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def json_digest(value: Any) -> str:
    """Return the hexadecimal sha256 of a JSON value; the order of its keys does not matter."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """Return the hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()
