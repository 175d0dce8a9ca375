"""Files that are either complete or absent."""

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
    """Lock a folder for this process; the system releases it when the process ends, however it ends.

    Raises:
        InputError: another process has locked it.
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
def attribute_errors_to(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError: the error of a full disk does not say which file it is about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name next to its destination, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with attribute_errors_to(path):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as `json_bytes` formats it."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return indented JSON; NaN and infinity are refused, since JSON has neither."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def reserve(folder: Path, size: int) -> None:
    """Make sure that `size` bytes can be written in a folder, whatever limits them: the disk, a quota, or the process.

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
    """Make an .npy file of zeros with reserved space: writing to a memory map without space kills the process instead of raising.

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
    """Return the hexadecimal digest of a file, read block by block."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def json_digest(value: Any) -> str:
    """Return the hexadecimal sha256 of a JSON value; the order of its keys does not matter."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """Return the hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()
