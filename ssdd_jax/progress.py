"""What a user sees while a run goes on: a live bar on a terminal or in a notebook, plain lines elsewhere."""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssdd_jax.terminal import say, tolerant

PLAIN_INTERVAL_S = 10.0
# A file has no width of its own; the results table fits into this one.
FILE_WIDTH = 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Do nothing: rich would exit the process; `tolerant` handles it."""
        raise


def _has_widgets(console: Console) -> bool:
    """Return whether this is a notebook with ipywidgets, with which rich draws its bar; Colab has them."""
    return console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


class Display:
    """The display of one run; `Task.advance` is cheap enough to call every step.

    Args:
        quiet: show nothing, as in all processes of a run except one.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = _Console(highlight=False, markup=False)
        self.live = (self.console.is_terminal or _has_widgets(self.console)) and not quiet
        if not self.live:
            self.console.width = FILE_WIDTH

    def print(self, text: object) -> None:
        """Print a line (or a rich table) above the bar."""
        if self.quiet:
            return
        with tolerant():
            self.console.print(text, soft_wrap=isinstance(text, str))

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Task"]:
        """Show the progress of `total` steps under `name`."""
        if not self.live:
            yield Task(name, total, quiet=self.quiet)
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


class Task:
    """One bar, or one plain line every `PLAIN_INTERVAL_S` seconds."""

    def __init__(self, name: str, total: int, bar: Progress | None = None, quiet: bool = False):
        self.name, self.total, self.bar, self.quiet = name, total, bar, quiet
        self.last_line, self.first = time.monotonic(), (0.0, 0)
        self.bar_id = bar.add_task(name, total=total, note="") if bar else None

    def advance(self, done: int, note: str = "") -> None:
        """Report that `done` of the steps are done."""
        # The first ones also compile: how long the rest will take is estimated from those after them.
        self.first = self.first if self.first[1] else (time.monotonic(), done)
        if self.bar is not None and self.bar_id is not None:
            self.bar.update(self.bar_id, completed=done, **({"note": note} if note else {}))
        elif not self.quiet and time.monotonic() - self.last_line >= PLAIN_INTERVAL_S:
            self.last_line = time.monotonic()
            seconds, steps = self.last_line - self.first[0], done - self.first[1]
            left = f", {seconds / steps * (self.total - done):.0f} s left" if steps else ""
            say(f"{self.name}: {done}/{self.total}{left}{'  ' + note if note else ''}")
