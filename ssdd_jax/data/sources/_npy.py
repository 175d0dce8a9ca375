"""Arrays in .npy files, alone or inside .npz archives: opened without reading them, then read completely or some rows at a time."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ssdd_jax.errors import DataError

BLOCK_BYTES = 2**24
# For an .npz inside a zip archive: enough for its directory and the small arrays that follow a large one.
_KEPT_BYTES = 2**22
# RuntimeError: an encrypted archive, or an unknown compression.
_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class NpyArray:
    """An array that has not been read yet; damage found on reading is a DataError.

    Attributes:
      name: its name in messages, such as "x_train in 'mine.npz'".
      shape: shape in its header.
      dtype: dtype in its header; never one that holds objects.
      fortran_order: whether, according to its header, the first axis varies fastest.
      offset: number of bytes before its values.
      opened: opens the .npy at its beginning.
      file: the .npy file; None if it lies in an archive.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int
    opened: Callable[[], AbstractContextManager[IO[bytes]]]
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """Return how many bytes its values take."""
        # Python integers: a damaged header's product can exceed 64 bits.
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> np.ndarray:
        """Read the array into memory; an array in a file of its own is memory-mapped instead."""
        order = "F" if self.fortran_order else "C"
        with _reading(self.name):
            if self.file is not None and self.nbytes:
                return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, order)
            with self.opened() as stream:
                stream.read(self.offset)
                return np.frombuffer(_read(stream, self.nbytes), self.dtype).reshape(self.shape, order=order)

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the array in pieces along its first axis, of about BLOCK_BYTES each; it must not be empty."""
        count = max(1, BLOCK_BYTES // (self.nbytes // self.shape[0]))
        if self.file is not None or self.fortran_order:
            whole = self.load()
            yield from (whole[start : start + count] for start in range(0, len(whole), count))
            return
        with _reading(self.name), self.opened() as stream:
            stream.read(self.offset)
            for start in range(0, self.shape[0], count):
                shape = (min(count, self.shape[0] - start), *self.shape[1:])
                yield np.frombuffer(_read(stream, math.prod(shape) * self.dtype.itemsize), self.dtype).reshape(shape)


class Npz:
    """An .npz file, possibly inside a zip archive; it is opened anew for every array.

    Args:
      file: the .npz or the zip archive.
      member: the .npz's name in the zip archive; "" if `file` is the .npz.

    Attributes:
      name: its name in messages.
      keys: the names of its arrays.

    Raises:
      DataError: it cannot be read or is incomplete. To find out, an .npz inside a zip archive is fully inflated once.
    """

    def __init__(self, file: Path, member: str = ""):
        self.file, self.member = file, member
        self.name = f"{member!r} in {str(file)!r}" if member else repr(str(file))
        self._tail = b""
        try:
            with self._archive() as archive:
                self.keys = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{self.name} is not a complete .npz file, expected one from numpy.savez or savez_compressed; download or write it again"
            ) from error
        except _UNREADABLE as error:
            raise DataError(
                f"cannot open {self.name} ({type(error).__name__}), expected a complete .npz file; check its permissions or write it again"
            ) from error

    def open(self, key: str) -> NpyArray:
        """Read the header of one of the arrays.

        Raises:
          DataError: there is none of this name, it holds objects, or it is incomplete.
        """
        if key not in self.keys:
            raise DataError(f"{self.name} has no {key} (it has {list_names(self.keys)}), expected it there; download or write it again")

        @contextmanager
        def opened() -> Iterator[IO[bytes]]:
            with self._archive() as archive, archive.open(f"{key}.npy") as stream:
                yield stream

        name = f"{key} in {self.name}"
        with _reading(name), self._archive() as archive:
            size = archive.getinfo(f"{key}.npy").file_size
        return _read_header(name, opened, size)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with zipfile.ZipFile(self.file) as outer:
            if not self.member:
                yield outer
                return
            with closing(_Inflated(outer, self.member, self._tail)) as content:
                self._tail = content.keep_tail()
                with zipfile.ZipFile(content) as inner:
                    yield inner


class _Inflated:
    """A member of a zip archive as a file of its own.

    To seek backwards, `zipfile` inflates a member from its beginning, and reading an archive inside it takes several such seeks: from the
    end to the directory, and from there to the arrays. The last bytes are therefore kept once they are known.
    """

    def __init__(self, archive: zipfile.ZipFile, member: str, tail: bytes):
        self._archive, self._member, self._tail = archive, member, tail
        self._size = archive.getinfo(member).file_size
        self._stream, self._at, self._position = archive.open(member), 0, 0

    def keep_tail(self) -> bytes:
        if not self._tail:
            last = b""
            while chunk := self._stream.read(_KEPT_BYTES):
                self._at += len(chunk)
                self._tail, last = last + chunk, chunk
            self._tail = self._tail[-_KEPT_BYTES:]
        return self._tail

    def close(self) -> None:
        self._stream.close()

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise OSError("position before the beginning")
        self._position = position
        return position

    def read(self, count: int = -1) -> bytes:
        count = self._size - self._position if count < 0 else count
        into_tail = self._position - (self._size - len(self._tail))
        if into_tail >= 0:
            data = self._tail[into_tail : into_tail + count]
        else:
            if self._at > self._position:
                self._stream.close()
                self._stream, self._at = self._archive.open(self._member), 0
            while self._at < self._position:
                self._at += len(_read(self._stream, min(BLOCK_BYTES, self._position - self._at)))
            data = self._stream.read(count)
            self._at += len(data)
        self._position += len(data)
        return data


def open_npy(file: Path) -> NpyArray:
    """Read the header of an .npy file.

    Raises:
      DataError: it cannot be read, holds objects, or is incomplete.
    """
    name = repr(str(file))
    with _reading(name):
        size = file.stat().st_size
    return _read_header(name, lambda: file.open("rb"), size, file)


def list_names(names: tuple[str, ...]) -> str:
    """Return the first few names, for messages that list what is there."""
    return ", ".join(map(repr, names[:10])) + (" and more" if len(names) > 10 else "") or "nothing"


def _read_header(name: str, opened: Callable[[], AbstractContextManager[IO[bytes]]], size: int, file: Path | None = None) -> NpyArray:
    with _reading(name), opened() as stream:
        version = np.lib.format.read_magic(stream)
        try:
            shape, fortran_order, dtype = _READ_HEADER[version](stream)
        except Exception as error:
            # NumPy evaluates the header as a Python literal, so a damaged one can raise nearly anything.
            raise ValueError("not the header of an .npy file") from error
        offset = stream.tell()
        array = NpyArray(name, shape, dtype, fortran_order, offset, opened, file)
        if dtype.hasobject:
            raise DataError(
                f"{name} is an object array, expected plain numbers or text: objects can run code and are never loaded; "
                "make all items one shape and save with a plain dtype"
            )
        if min(shape, default=0) < 0 or offset + array.nbytes != size:
            raise DataError(
                f"{name} holds {size} bytes, expected {offset + array.nbytes} for its header's shape {shape}; it is damaged: write it again"
            )
    return array


def _read(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("the file is shorter than its header says")
    return data


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"cannot read {name} ({type(error).__name__}), expected a complete .npz or .npy; write it again") from error
