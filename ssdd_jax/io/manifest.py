"""A folder of files that its manifest vouches for: `manifest.json`, written last, and `SHA256SUMS`."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import file_digest, json_bytes, sha256, write_bytes

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"


def write_folder(path: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write files, `SHA256SUMS` of all of them (for sha256sum -c) and, last, the manifest."""
    path.mkdir(parents=True, exist_ok=True)
    # An old manifest must not vouch for new files, not even for a moment.
    (path / MANIFEST).unlink(missing_ok=True)
    last = json_bytes(manifest)
    for name, content in files.items():
        write_bytes(path / name, content)
    _write_sums(path, {name: sha256(content) for name, content in {**files, MANIFEST: last}.items()})
    write_bytes(path / MANIFEST, last)


def seal(path: Path, names: Iterable[str]) -> None:
    """Write `SHA256SUMS` of files that are in a folder already."""
    _write_sums(path, {name: file_digest(path / name) for name in names})


def _write_sums(path: Path, digests: Mapping[str, str]) -> None:
    write_bytes(path / SUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())


def read_sums(path: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder by its name, as listed in `SHA256SUMS`.

    Raises:
        DataError: there is no such file, or it is not a list of digests.
    """
    try:
        lines = (path / SUMS).read_bytes().decode().splitlines(keepends=True)
    except FileNotFoundError:
        raise DataError(f"{path / SUMS} is missing, expected the digests of the files there; make the folder again") from None
    except UnicodeDecodeError:
        lines = ["?"]
    entries = [re.fullmatch(r"([0-9a-f]{64})  ([^\n]+)\n", line) for line in lines]
    if not all(entries):
        raise DataError(f"{path / SUMS} is damaged: it is not a list of sha256 and names; copy the folder again, or make it again")
    return {entry[2]: entry[1] for entry in entries if entry}


def damaged_files(path: Path) -> list[str]:
    """Return the names of the files in a folder that have changed since they were written, or are gone.

    Raises:
        DataError: as for `read_sums`.
    """
    return sorted(name for name, digest in read_sums(path).items() if not (path / name).is_file() or file_digest(path / name) != digest)


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, or None if it has none, which means that its contents are incomplete.

    Raises:
        DataError: it is not a JSON object, or has changed since it was written.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        return None
    content = file.read_bytes()
    # A set made by hand has no sums, nor does a prepared dataset.
    if file.with_name(SUMS).is_file() and read_sums(file.parent).get(MANIFEST) != sha256(content):
        raise DataError(f"{file} is damaged: its sha256 is not that in {SUMS}; copy the folder again, or make it again")
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise DataError(f"{file} is damaged: it is not valid JSON ({error}); copy the folder again, or make it again") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{file} holds a {type(manifest).__name__}, expected an object; copy the folder again, or make it again")
    return manifest


def listed_files(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says about its files, by name; empty if it lists none.

    Raises:
        InputError: its "files" are not an object.
    """
    files = manifest.get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{path / MANIFEST} has 'files' that are not a JSON object, expected one with file names as keys; write it again")
    return files
