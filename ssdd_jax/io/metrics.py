"""metrics.jsonl: one JSON object a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssdd_jax.errors import StorageError
from ssdd_jax.io.files import naming, write_bytes

Logger = Callable[[str, int, dict[str, Any]], None]
"""(stage, step, values) of a line."""


class Metrics:
    """The lines of a run. A stage that starts at some step drops the lines it wrote beyond it in an earlier attempt.

    Args:
        path: of the file.
        logger: is told of every line that is written, to pass it on to TensorBoard or Weights & Biases for instance; one that
            raises is not asked again, and the run goes on.
        warn: is told so.
    """

    def __init__(self, path: Path, logger: Logger | None = None, warn: Callable[[str], None] = lambda line: None):
        self.path, self.logger, self.warn = path, logger, warn

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; a last line that was cut off is left out.

        Raises:
            StorageError: another line cannot be read.
        """
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        records = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if not (isinstance(record.get("stage"), str) and isinstance(record.get("step"), int)):
                    raise ValueError("no stage and step")
                records.append(record)
            except (ValueError, AttributeError) as error:
                if number != len(lines) - 1:
                    raise StorageError(f"line {number + 1} of {self.path} is damaged ({error}); remove that line") from error
        return records

    def begin(self, stage: str = "", step: int = 0) -> None:
        """Drop the lines of `stage` beyond `step`, and in any case a last line that was cut off."""
        if not self.path.exists():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        if content != self.path.read_bytes():
            write_bytes(self.path, content)

    def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        if self.logger is not None:
            try:
                self.logger(stage, step, dict(values))
            except Exception as error:  # it is not ours, and may raise anything
                self.logger = None
                self.warn(f"warning: the logger raised {type(error).__name__}: {error}; the run goes on without it")
