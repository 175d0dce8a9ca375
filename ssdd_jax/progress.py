"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0
# A file has no width of its own; the results table fits into this one.
FILE_WIDTH = 120


class Display:
    """The display of one run; `Task.advance` is cheap enough to call every step."""

    def __init__(self):
        self.console = Console(highlight=False, markup=False)
        self.live = self.console.is_terminal
        if not self.live:
            self.console.width = FILE_WIDTH

    def print(self, text: object) -> None:
        """Print a line (or a rich table) above the bar."""
        with _whatever_the_terminal_does():
            self.console.print(text, soft_wrap=isinstance(text, str))

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Task"]:
        """Show the progress of `total` steps under `name`."""
        if not self.live:
            yield Task(name, total)
            return
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as bar:
            yield Task(name, total, bar)


@contextmanager
def _whatever_the_terminal_does() -> Iterator[None]:
    """Go on where nobody reads any more: a closed pipe or terminal must not end a run."""
    try:
        yield
    except (OSError, ValueError):  # ValueError: the stream is closed
        # What is left in its buffer would be tried again, and fail again, when the process ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class Task:
    """One bar, or one plain line every `PLAIN_INTERVAL_S` seconds."""

    def __init__(self, name: str, total: int, bar: Progress | None = None):
        self.name, self.total, self.bar = name, total, bar
        self.started = self.last_line = time.monotonic()
        self.bar_id = bar.add_task(name, total=total, note="") if bar else None

    def advance(self, done: int, note: str = "") -> None:
        """Say that `done` steps of all are done."""
        if self.bar is not None and self.bar_id is not None:
            self.bar.update(self.bar_id, completed=done, **({"note": note} if note else {}))
        elif time.monotonic() - self.last_line >= PLAIN_INTERVAL_S:
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.started
            left = f", {elapsed / done * (self.total - done):.0f} s left" if done else ""
            with _whatever_the_terminal_does():
                print(f"{self.name}: {done}/{self.total}{left}{'  ' + note if note else ''}", flush=True, file=sys.stdout)
