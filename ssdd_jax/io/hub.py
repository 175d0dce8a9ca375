"""The Hugging Face Hub: its own library sends and fetches folders, and keeps the user's login to itself."""

import importlib
import re
from pathlib import Path
from typing import Any

from ssdd_jax.errors import InputError

ADDRESS = "hf://"
ORIGINAL = "distilled"
"""The folder of the set itself within a repository."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def hub_library(name: str, what: str) -> Any:
    """Return a library of the extra `hf`, imported.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f"{error.name or error}, which is not installed"
        raise InputError(f"{what} needs {missing}; run: pip install ssdd-jax[hf]") from error


def check_repo(repo: str | None) -> str:
    """Return the name of a repository.

    Raises:
        InputError: none is given, or it is not USER/NAME.
    """
    if repo is None or not _REPO.fullmatch(repo):
        given = "is missing" if repo is None else f"is {repo!r}"
        raise InputError(
            f"--repo {given}, expected USER/NAME, a repository of the Hugging Face Hub; --task=export --format=hf only writes its folder"
        )
    return repo


def upload(folder: Path, repo: str, kind: str, private: bool = False) -> str:
    """Send a folder to a repository, which is made if it is missing, and return its address.

    Args:
        folder: what the repository holds afterwards, in addition to files of other names that it has.
        repo: USER/NAME.
        kind: 'dataset' or 'model'.
        private: whether a new repository is private.

    Raises:
        InputError: the library is not installed, or the Hub refuses or cannot be reached.
    """
    hub = hub_library("huggingface_hub", "--task=push")
    try:
        created = hub.create_repo(check_repo(repo), repo_type=kind, private=private, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=repo, repo_type=kind, commit_message="Upload with ssdd_jax")
    except Exception as error:  # of whatever carries its requests
        raise InputError(
            f"cannot push {folder} to {repo}: {_reason(error)}; log in with `hf auth login`, and check the name and the network"
        ) from error
    return str(created)


def download(address: str) -> Path:
    """Return the folder of a distilled set of a repository, from the library's cache once it is there.

    Args:
        address: hf://USER/NAME or hf://USER/NAME@REVISION.

    Raises:
        InputError: the address is another, the library is not installed, or the Hub refuses or cannot be reached.
    """
    repo, _, revision = address.removeprefix(ADDRESS).partition("@")
    if not _REPO.fullmatch(repo):
        raise InputError(f"{address!r} is not hf://USER/NAME, nor hf://USER/NAME@REVISION; correct it")
    hub = hub_library("huggingface_hub", address)
    try:
        folder = hub.snapshot_download(repo, repo_type="dataset", revision=revision or None, allow_patterns=f"{ORIGINAL}/*")
    except Exception as error:  # of whatever carries its requests
        raise InputError(
            f"cannot download {address}: {_reason(error)}; check the name and the network, or log in with `hf auth login`"
        ) from error
    return Path(folder) / ORIGINAL


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
