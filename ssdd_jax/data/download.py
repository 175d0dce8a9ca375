"""Fetching the published files of a dataset: the only part of the package that uses the network."""

import errno
import http.client
import os
import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from ssdd_jax.data.source import Archive
from ssdd_jax.data.sources import NAMED, archives, data_folder, open_source
from ssdd_jax.errors import DataError
from ssdd_jax.io.files import file_digest
from ssdd_jax.progress import Display

# Their files are named like other datasets' files, so each has its own folder, where its reader looks first.
_OWN_FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", "kmnist": "kmnist", "dogs": "stanford_dogs"}
_TIMEOUT_S = 60
_BLOCK = 2**20


def download(source: str, data_dir: str | Path = "", display: Display | None = None) -> None:
    """Fetch the files of a source into the data folder, unless they are there.

    A file appears under its name only when it is complete and has its published checksum; none is ever overwritten.

    Args:
      source: see `ssdd_jax.data.open_source`.
      data_dir: where to put the files; "" means `ssdd_jax.data.sources.default_data_dir()`.
      display: where progress and results are shown.

    Raises:
      DataError: the source is unknown, a file cannot be fetched or has another checksum, or another file is in its place.
    """
    display = display or Display()
    kind = source.partition(":")[0]
    if kind in ("tfds", "hf"):
        open_source(source, data_dir, download=True)
        display.print(f"{source} is already here")
    elif source in NAMED and archives(source):
        root = data_folder(data_dir)
        for archive in archives(source):
            _fetch(archive, root / _OWN_FOLDERS.get(source, ""), display)
    else:
        # This refuses whatever is misspelt or missing.
        open_source(source, data_dir)
        display.print(f"{source}: nothing to download")


def _fetch(archive: Archive, folder: Path, display: Display) -> None:
    target = folder / archive.file
    if target.exists():
        _check_existing(archive, target, display)
        return
    by_hand = f"download it manually and put it into {str(folder)!r}"
    if not archive.url:
        raise DataError(f"{archive.file} cannot be fetched without an account; {by_hand}")
    temporary = folder / f".{archive.file}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy(archive, temporary, display)
        found = file_digest(temporary, "md5")
        if archive.md5 and found != archive.md5:
            size = f"{temporary.stat().st_size:,} bytes"
            raise DataError(f"{archive.url} gave {size} with md5 {found}, expected {archive.md5}; try again later, or {by_hand}")
        temporary.rename(target)
    except (OSError, http.client.HTTPException) as error:
        # URLError and HTTPError are OSErrors.
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        code = ""
        if isinstance(error, urllib.error.HTTPError):
            code = f"{error.code} "
            error.close()
        raise DataError(f"cannot download {archive.url} to {str(target)!r}: {code}{reason}; try again later, or {by_hand}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    checked = f"md5 {found} as published" if archive.md5 else f"md5 {found}, none is published"
    display.print(f"{target}: {target.stat().st_size:,} bytes, {checked}")


def _check_existing(archive: Archive, target: Path, display: Display) -> None:
    if not target.is_file():
        raise DataError(f"{str(target)!r} is not a file, but {archive.file} would be downloaded to it; move it away")
    if not archive.md5:
        display.print(f"{target}: kept, no md5 is published to compare with")
        return
    found = file_digest(target, "md5")
    if found != archive.md5:
        raise DataError(
            f"{str(target)!r} exists with md5 {found}, expected {archive.md5}, and is not overwritten; move it away and download again"
        )
    display.print(f"{target}: kept, md5 {found} as published")


def _copy(archive: Archive, temporary: Path, display: Display) -> None:
    request = urllib.request.Request(archive.url, headers={"User-Agent": "ssdd-jax"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, temporary.open("wb") as stream:
        if not archive.md5 and response.headers.get_content_type() == "text/html":
            raise OSError("the address returned a web page, perhaps because it requires an account")
        total = int(response.headers.get("Content-Length") or 0)
        if total > (free := shutil.disk_usage(temporary.parent).free):
            raise OSError(errno.ENOSPC, f"{total / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")
        done = 0
        with display.task(f"{archive.file} (MB)", max(1, round(total / 1e6))) as task:
            while block := response.read(_BLOCK):
                stream.write(block)
                done += len(block)
                task.advance(round(done / 1e6))
        if done < total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
