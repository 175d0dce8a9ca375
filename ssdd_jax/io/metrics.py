"""metrics.jsonl: one JSON object per line."""

import json
from pathlib import Path
from typing import Any

from ssdd_jax.errors import StorageError
from ssdd_jax.io.files import attribute_errors_to, write_bytes
from ssdd_jax.io.loggers import LogFn, Loggers


class Metrics:
    """The lines of a run. A stage that starts at some step drops the lines that an earlier attempt wrote after it.

    Args:
        path: path of the file.
        logger: called with every line that is written; one that raises is reported, and not called again.
    """

    def __init__(self, path: Path, logger: LogFn | None = None):
        self.path = path
        self.loggers = logger if isinstance(logger, Loggers) else Loggers({} if logger is None else {"": lambda: logger})
        """Where lines go besides the file; also for pictures and tables, which the file has none of."""

    def read(self) -> list[dict[str, Any]]:
        """Return all lines, except a last line that was cut off.

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
        """Drop the lines of `stage` after `step`, and always a last line that was cut off."""
        if not self.path.exists():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        if content != self.path.read_bytes():
            write_bytes(self.path, content)

    def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with attribute_errors_to(self.path), self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self.loggers(stage, step, values)
