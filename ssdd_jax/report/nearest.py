"""report/nearest.safetensors: the real images next to those of a distilled set, written by a run, which has them, for its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from ssdd_jax.errors import DataError
from ssdd_jax.io.files import write_bytes
from ssdd_jax.io.safetensors_files import parse_safetensors

FILE = "report/nearest.safetensors"
COUNT = 5
"""Real images for every distilled one."""
CHUNK = 4096


@dataclass(frozen=True)
class Nearest:
    """The real images next to the first images of a distilled set.

    Attributes:
        images: uint8 "m k H W C", the nearest first.
        rows: "m k", their places among the training images.
        distances: "m k", the mean squared difference of the representations, divided by the variance of the training images'.
        digest: sha256 of the set, as its manifest says it.
    """

    images: np.ndarray
    rows: np.ndarray
    distances: np.ndarray
    digest: str


def nearest_rows(points: np.ndarray, reprs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of `reprs` that are nearest to some points.

    Args:
        points: "m d".
        reprs: "n d", such as a memory map: it is read once, a chunk at a time.
        count: how many, at most n.

    Returns:
        Their places "m k", the nearest first, and the distances: mean squared differences, divided by the variance of `reprs`.

    Example:
        >>> nearest_rows(np.array([[0.9]]), np.array([[0.0], [1.0], [2.0]]), 2)[0].tolist()
        [[1, 0]]
    """
    points = points.astype(np.float32)
    places, distances = np.empty((len(points), 0), int), np.empty((len(points), 0), np.float32)
    total, squares = np.zeros(points.shape[1]), 0.0
    for start in range(0, len(reprs), CHUNK):
        rows = np.asarray(reprs[start : start + CHUNK], np.float32)
        total, squares = total + rows.sum(0, dtype=np.float64), squares + float((rows.astype(np.float64) ** 2).sum())
        found = (points**2).sum(1)[:, None] + (rows**2).sum(1)[None] - 2 * points @ rows.T
        # Equal distances go to the earlier row.
        places = np.concatenate([places, np.broadcast_to(np.arange(start, start + len(rows)), found.shape)], 1)
        distances = np.concatenate([distances, found], 1)
        best = np.argsort(distances, 1, kind="stable")[:, :count]
        places, distances = np.take_along_axis(places, best, 1), np.take_along_axis(distances, best, 1)
    variance = max(squares / len(reprs) - float((total / len(reprs)) @ (total / len(reprs))), np.finfo(np.float32).tiny)
    return places, np.maximum(distances, 0) / variance


def write_nearest(workdir: Path, found: Mapping[str, Nearest]) -> None:
    """Write what was found, by method."""
    arrays, digests = {}, {}
    for method, nearest in found.items():
        arrays |= {f"{method}/images": nearest.images, f"{method}/rows": nearest.rows, f"{method}/distances": nearest.distances}
        digests[f"{method}/digest"] = np.frombuffer(nearest.digest.encode(), np.uint8)
    write_bytes(workdir / FILE, safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in {**arrays, **digests}.items()}))


def read_nearest(workdir: Path) -> dict[str, Nearest]:
    """Return what a run has written, by method; nothing if the file is missing or damaged."""
    file, found = workdir / FILE, {}
    try:
        arrays = parse_safetensors(file.read_bytes()) if file.is_file() else {}
        for method in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
            images, rows, distances, digest = (np.asarray(arrays[f"{method}/{part}"]) for part in ("images", "rows", "distances", "digest"))
            found[method] = Nearest(images, rows, distances, digest.tobytes().decode())
    except (DataError, LookupError, UnicodeDecodeError):
        return {}
    return found
