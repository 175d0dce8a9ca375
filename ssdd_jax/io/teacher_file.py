"""A teacher on disk, as PyTorch names its weights: what a repository of it holds, and what `config.teacher.checkpoint` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ssdd_jax.errors import DataError
from ssdd_jax.io.cards import TEACHER_WEIGHTS
from ssdd_jax.io.files import sha256
from ssdd_jax.io.manifest import damaged_files, read_manifest, write_folder

TEACHER_KIND = "ssdd_jax teacher"


def save_teacher(folder: Path, state_dict: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Path:
    """Write a teacher's weights and its manifest, unless the folder holds those of the same digest already.

    Args:
        folder: made if it is missing.
        state_dict: arrays by PyTorch's names.
        about: for the manifest: net, widths, dataset, image_shape, repr_width, normalization, pretraining, centre, scale and digest.

    Returns:
        The folder.
    """
    if not _holds(folder, about["digest"]):
        content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in state_dict.items()})
        write_folder(folder, {TEACHER_WEIGHTS: content}, {"kind": TEACHER_KIND, **about, "sha256": sha256(content)})
    return folder


def _holds(folder: Path, digest: str) -> bool:
    """Return whether a folder holds an intact teacher of this digest."""
    try:
        return (read_manifest(folder) or {}).get("digest") == digest and not damaged_files(folder)
    except DataError:
        return False
