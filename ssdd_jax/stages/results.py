"""results.json: every row of every table, written after every row, so that no finished cell is computed twice."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssdd_jax.errors import StorageError
from ssdd_jax.io.files import write_json
from ssdd_jax.report import score_columns, summarize


class Results:
    """The rows of a run, by their digests.

    Args:
        file: results.json, of an earlier run or not there.
        header: what the file says besides its rows.
        digests: of the cells of this run in the order of the table; the others' rows stay in the file as `earlier`.

    Raises:
        StorageError: the file is not a results.json.
    """

    def __init__(self, file: Path, header: Mapping[str, Any], digests: Sequence[str]):
        self.file, self.header, self.digests = file, header, digests
        try:
            old = json.loads(file.read_text()) if file.exists() else {}
            self.known = {row["digest"]: row for row in [*old.get("earlier", []), *old.get("rows", [])]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(f"{file} is not a results file ({error}), expected what an evaluation writes; move it away") from error

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row and write the file."""
        self.known[row["digest"]] = row
        self.write()

    def write(self) -> dict[str, Any]:
        """Write the file and return its content."""
        current = set(self.digests)
        rows = [self.known[digest] for digest in self.digests if digest in self.known]
        earlier = [row for digest, row in self.known.items() if digest not in current]
        content = {**self.header, "rows": rows, "summary": summarize(rows, score_columns(self.header)), "earlier": earlier}
        write_json(self.file, content)
        return content
