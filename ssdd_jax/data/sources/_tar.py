"""Gzipped tar archives, read sequentially."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssdd_jax.data.source import Archive, damaged
from ssdd_jax.errors import DataError


def read_tar(file: Path, archive: Archive, members: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, int]]:
    """Read some members of a gzipped tar archive; all of it is inflated to verify its checksum.

    Args:
      file: the archive.
      archive: what is known about it, for messages.
      members: the members to read.

    Returns:
      The contents of `members`, and the sizes in bytes of all files in the archive.

    Raises:
      DataError: the archive is damaged, or lacks some of `members`.
    """
    contents, sizes = {}, {}
    with opened_tar(file, archive) as (tar, content):
        for info in tar:
            name = info.name.removeprefix("./")
            if info.isfile():
                sizes[name] = info.size
                stream = tar.extractfile(info) if name in members else None
                if stream is not None:
                    contents[name] = stream.read()
        # The archive's end is followed by zeros and the checksum.
        while chunk := content.read(2**20):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("something else follows the tar archive, or one of its headers is damaged")
    missing = [name for name in members if name not in contents]
    if missing:
        raise damaged(file, f"there is no {', '.join(missing)} in it", f"the {archive.file} that is published at {archive.url}", archive)
    return contents, sizes


@contextmanager
def opened_tar(file: Path, archive: Archive) -> Iterator[tuple[tarfile.TarFile, gzip.GzipFile]]:
    """Open a gzipped tar archive, to be read from its beginning to its end; any error in reading it becomes a DataError."""
    try:
        with gzip.open(file) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            yield tar, content
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise damaged(file, error, "a complete gzipped tar archive", archive) from error


def text_lines(content: bytes) -> tuple[str, ...]:
    """Return a text file's lines that are not empty."""
    return tuple(line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip())
