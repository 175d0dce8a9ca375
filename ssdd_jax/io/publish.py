"""Distilled sets and teachers as repositories of the Hugging Face Hub."""

import tempfile
from pathlib import Path

from ssdd_jax.errors import InputError
from ssdd_jax.io.cards import CARD, check_licence, teacher_card
from ssdd_jax.io.export import export_distilled
from ssdd_jax.io.files import write_bytes
from ssdd_jax.io.hub import check_repo, hub_library, upload
from ssdd_jax.io.manifest import damaged_files, read_manifest
from ssdd_jax.io.teacher_file import TEACHER_KIND


def is_teacher(folder: Path) -> bool:
    """Return whether a folder is that of a teacher, which `save_teacher` wrote."""
    return (read_manifest(folder) or {}).get("kind") == TEACHER_KIND


def push_to_hub(
    source: str | Path, repo: str | None, *, licence: str | None, private: bool = False, folder: str | Path | None = None
) -> str:
    """Send a distilled set, or a run's teacher, to the Hugging Face Hub.

    A set becomes a dataset repository: parquet that the Hub shows, the set itself, which `load_distilled("hf://USER/NAME")` reads and
    checks, and a card. A teacher becomes a model repository with its weights, manifest and card. Log in first: `hf auth login`.

    Args:
        source: the folder of a distilled set, such as runs/digits/distilled/ours/seed_0, or of a teacher, runs/digits/teacher.
        repo: USER/NAME; it is made if it is missing.
        licence: that of the source images, as the Hub spells it, such as cc-by-4.0, mit, other or unknown.
        private: whether a new repository is private.
        folder: where the repository's folder is written and stays; none keeps nothing.

    Returns:
        The address of the repository.

    Raises:
        InputError: there is no set or teacher; the name or the licence cannot be one; the extra `hf` is not installed; or the Hub refuses
            or cannot be reached.

    Example:
        >>> push_to_hub("runs/digits/distilled/ours/seed_0", "me/digits", licence="cc-by-4.0")  # doctest: +SKIP
        'https://huggingface.co/datasets/me/digits'
    """
    source, repo, licence = Path(source), check_repo(repo), check_licence(licence)
    # Before anything is written.
    hub_library("huggingface_hub", "--task=push")
    if is_teacher(source):
        if damaged := damaged_files(source):
            raise InputError(f"{source} is damaged: {', '.join(damaged)} changed since written; make it again before it is pushed")
        # Its own folder is the repository's; nothing vouches for the card, which people edit on the Hub.
        write_bytes(source / CARD, teacher_card(read_manifest(source) or {}, licence).encode())
        return upload(source, repo, "model", private)
    with tempfile.TemporaryDirectory() as temporary:
        return upload(export_distilled(source, folder or temporary, "hf", licence=licence, repo=repo), repo, "dataset", private)
