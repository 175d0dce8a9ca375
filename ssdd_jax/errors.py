"""The errors that a user's input can cause."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A setting, file or dataset that cannot be used.

    The message is one line: what was given, what was expected, what to do. The command line prints it without a
    traceback and exits with `status`.
    """

    status = 2


class StorageError(InputError):
    """What a run has stored cannot be read or written."""

    status = 5


class DataError(InputError):
    """A dataset or another file whose contents cannot be used."""

    status = 3


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return '; did you mean ...?' for the known name nearest to `name`, or nothing where none is as near as `cutoff`."""
    close = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
