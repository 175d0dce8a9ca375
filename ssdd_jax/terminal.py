"""Writing to a terminal, pipe or file that may be gone: output that nobody reads must not end a run."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal


@contextmanager
def tolerant(name: Literal["stdout", "stderr"] = "stdout") -> Iterator[None]:
    """Go on if writing to the stream fails; nothing more is written to it after that."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: the stream is closed
        # Otherwise the rest of its buffer would be written, and fail, again when the process ends.
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def say(text: object, name: Literal["stdout", "stderr"] = "stdout") -> None:
    """Print a line."""
    with tolerant(name):
        print(text, file=getattr(sys, name), flush=True)


def escape_unknown_letters() -> None:
    """Let a terminal without Unicode show escapes instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
