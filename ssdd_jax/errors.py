"""The errors that a user's input can cause, and every exit status of a command."""

import difflib
import errno
from collections.abc import Iterable
from enum import IntEnum


class Status(IntEnum):
    """The exit statuses, each with its meaning."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "Status":
        """Make a member that equals its number."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    DONE = 0, "done"
    ERROR = 1, "a mistake in the program, with a traceback"
    INPUT = 2, "unusable settings or arguments"
    DATA = 3, "unusable data"
    NUMBERS = 4, "a number went bad"
    STORAGE = 5, "storage failed"
    LOST = 6, "another process of the run was lost"
    # EX_TEMPFAIL
    STOPPED = 75, "stopped on request, the same command goes on"


class InputError(ValueError):
    """A setting, file or dataset that cannot be used.

    The message is one line: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with `status`.
    """

    status = Status.INPUT


class BudgetError(InputError):
    """A method that does not exist at a budget, which tables show as such; for a run of nothing else, an unusable setting."""


class StorageError(InputError):
    """What a run stores cannot be read or written."""

    status = Status.STORAGE


class DataError(InputError):
    """A dataset or another file whose contents cannot be used."""

    status = Status.DATA


# What a disk or its owner refuses; any other OSError is a mistake in the program and keeps its traceback.
_STORAGE_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "ESTALE")
    if hasattr(errno, name)
)


def storage_error(error: OSError) -> StorageError | None:
    """Return a one-line error for what a disk or its owner refused, or None if the error is of another kind."""
    if error.errno not in _STORAGE_ERRORS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return StorageError(f"{where}{error.strerror}; make room or repair it and run the same command again: what was complete is kept")


def printable(text: str) -> str:
    """Return text that a file or a user chose as one line: line breaks and terminal codes become question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return '; did you mean ...?' for the known name nearest to `name`, or '' if none is as near as `cutoff`."""
    close = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
