"""metrics.jsonl: one JSON object a line."""

import json
from pathlib import Path
from typing import Any

from ssdd_jax.io.files import write_bytes


class Metrics:
    """The lines of a run. A stage that starts at some step drops the lines it wrote beyond it in an earlier attempt."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; a last line that was cut off is left out."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        records = []
        for number, line in enumerate(lines):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                if number != len(lines) - 1:
                    raise
        return records

    def begin(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`, and a last line that was cut off."""
        if not self.path.exists():
            return
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        if content != self.path.read_bytes():
            write_bytes(self.path, content)

    def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
