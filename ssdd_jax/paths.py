"""Paths that a user gives: a home's ~, file:// addresses, and other addresses, which are refused; and the cache's folder."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from ssdd_jax.errors import DataError, InputError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)(.*)", re.DOTALL)


def local_path(text: str | Path, where: str) -> Path:
    """Return the path that a user's text means.

    Args:
        text: a path, which may begin with ~, or file:///PATH.
        where: the flag or setting that it comes from, for messages.

    Raises:
        InputError: it is another address, such as s3://BUCKET, or cannot be a path.
    """
    address = _ADDRESS.fullmatch(str(text))
    if address is not None:
        scheme, host, path = address.groups()
        if scheme.lower() != "file" or host not in ("", "localhost") or not path:
            raise InputError(
                f"{where} is {str(text)!r}, expected a path on this machine; mount the bucket (gcsfuse, mountpoint-s3) and give its folder"
            )
        text = unquote(path)
    try:
        str(text).encode()
        return Path(text).expanduser()
    except (RuntimeError, UnicodeEncodeError):
        raise InputError(f"{where} {str(text)!a} is not a valid path: its user is unknown or it is not UTF-8; give another") from None


def default_cache() -> Path:
    """Return the folder of what is prepared once for all runs: $SSDD_JAX_CACHE, or ssdd_jax/ in the user's cache folder.

    Raises:
        DataError: the user has no home folder.
    """
    named = os.environ.get("SSDD_JAX_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.startswith("~"):
        raise DataError("the user has no home folder to keep prepared datasets in; set SSDD_JAX_CACHE to a folder")
    return Path(folder) / "ssdd_jax"
