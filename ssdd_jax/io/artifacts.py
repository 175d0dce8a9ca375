"""A distilled set on disk: `distilled.safetensors` and `manifest.json`, all that is needed to train on it elsewhere."""

import dataclasses
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ssdd_jax.core.approximation import Networks
from ssdd_jax.core.distilled import DistilledSet, Layout, num_images
from ssdd_jax.core.quantise import rows_of, stored_numbers, to_floats, to_integers
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import sha256
from ssdd_jax.io.hub import ADDRESS, download
from ssdd_jax.io.manifest import MANIFEST, read_manifest, write_folder
from ssdd_jax.registry import STORES

FORMAT = 1
TENSORS = "distilled.safetensors"
STORED = ("images", "reprs")
STEP = ".step"
"""At the end of the name of an array that holds the steps of another's rows."""


def _names(part: str, cls: type) -> dict[str, str]:
    """Return the fields of a part's dataclass and the names of their arrays: 'images.bases' and so on, or 'images' if there is only one."""
    fields = [field.name for field in dataclasses.fields(cls)]
    return {field: part if len(fields) == 1 else f"{part}.{field}" for field in fields}


def _flatten_leaves(distilled: DistilledSet) -> dict[str, Any]:
    """Return what a set has in every place, by its name."""
    leaves: dict[str, Any] = {}
    for part in (*STORED, "networks"):
        value = getattr(distilled, part)
        if value is not None:
            leaves |= {name: getattr(value, field) for field, name in _names(part, type(value)).items()}
    return leaves


def _flatten(distilled: DistilledSet) -> dict[str, np.ndarray]:
    """Return every array by its name."""
    return {name: np.ascontiguousarray(array, np.float32) for name, array in _flatten_leaves(distilled).items()}


def _in_bits(distilled: DistilledSet, bits: int) -> dict[str, np.ndarray]:
    """Return every array as whole numbers, and its rows' steps with `STEP` at the end of the name; two numbers of 4 bits are one byte."""
    rows = _flatten_leaves(rows_of(distilled))
    arrays: dict[str, np.ndarray] = {}
    for name, array in _flatten(distilled).items():
        integers, step = (np.asarray(part) for part in to_integers(jnp.asarray(array), bits, rows[name]))
        arrays |= {name: _packed(integers) if bits == 4 else integers, name + STEP: step}
    return arrays


def _packed(integers: np.ndarray) -> np.ndarray:
    """Return two numbers of 4 bits in every byte, the first in the lower half; an odd last one has a zero beside it."""
    flat = np.append(integers.ravel(), np.zeros(integers.size % 2, np.int8)).astype(np.uint8) & 15
    return flat[::2] | flat[1::2] << 4


def _unpacked(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    flat = np.stack([packed & 15, packed >> 4], -1).ravel()[: prod(shape)].astype(np.int8)
    return np.where(flat > 7, flat - 16, flat).astype(np.int8).reshape(shape)


def _out_of_bits(arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Undo `_in_bits`."""
    found = {}
    for name, about in manifest["arrays"].items():
        integers = _unpacked(arrays[name], about["shape"]) if manifest["bits"] == 4 else arrays[name]
        found[name] = np.asarray(to_floats(jnp.asarray(integers), jnp.asarray(arrays[name + STEP])))
    return found


def _store_name(part: str, store: Any) -> str:
    for name, kind in STORES.items():
        if kind.type is type(store):
            return name
    raise ValueError(
        f"save_distilled: {part} is a {type(store).__name__}, expected a store such as Plain({part}); "
        "a store of your own is added with STORES.register"
    )


def save_distilled(path: str | Path, compact: DistilledSet, *, bits: int = 32, **metadata: Any) -> Path:
    """Write a distilled set into the folder `path`; the manifest is written last, so a folder with one is complete.

    Args:
        path: folder, made if it is missing.
        compact: the distilled set.
        bits: of a number on disk: 32, or 8 or 4 as whole numbers with a step for every row, see `ssdd_jax.core.quantise`. What is read
            back is `quantise(compact, bits)`.
        metadata: JSON values for the manifest: `normalization` ({"mean": [...], "std": [...]} of pixels in [0, 1]),
            `teacher`, `method`, `seed` and the like.

    Returns:
        The folder.

    Raises:
        ValueError: an array holds NaN or infinity.

    Example:
        >>> save_distilled("my_set", compact, method="ours")  # doctest: +SKIP
    """
    path = Path(path)
    stores = {part: _store_name(part, getattr(compact, part)) for part in STORED}
    arrays = _flatten(compact)
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise ValueError(f"save_distilled: {bad[0]} holds NaN or infinity, nothing was written; the optimisation diverged")
    described = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}
    if bits != 32:
        arrays = _in_bits(compact, bits)
    content = safetensors.numpy.save(arrays)
    manifest = {
        "format": FORMAT,
        "bits": bits,
        "layout": dataclasses.asdict(compact.layout),
        "stores": stores,
        "image_axes": "NHWC",
        "num_images": num_images(compact),
        "num_views": len(compact.layout.views),
        "stored_scalars": stored_numbers(compact, bits),
        "arrays": described,
        "sha256": sha256(content),
        **metadata,
    }
    write_folder(path, {TENSORS: content}, manifest)
    return path


def load_distilled(path: str | Path) -> DistilledSet:
    """Read a distilled set and check it against its manifest.

    Args:
        path: the folder that `save_distilled` wrote, such as `runs/digits/distilled/ours/seed_0`, or hf://USER/NAME for one that
            `push_to_hub` has sent to the Hugging Face Hub (hf://USER/NAME@REVISION for one of its versions), which is downloaded once.

    Raises:
        InputError: the folder holds no distilled set, or the repository cannot be reached.
        DataError: its files have changed since they were written.

    Example:
        >>> images, reprs = expand(load_distilled("my_set"))  # doctest: +SKIP
    """
    path = download(str(path)) if str(path).startswith(ADDRESS) else Path(path)
    manifest = read_manifest(path)
    if manifest is None:
        below = sorted(str(file.parent) for file in path.glob(f"**/{MANIFEST}"))
        hint = f"did you mean {below[0]}?" if below else "give the folder that save_distilled wrote"
        raise InputError(f"no distilled set at {path}, expected {MANIFEST} and {TENSORS} there; {hint}")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path / MANIFEST} has format {manifest.get('format')!r}, expected {FORMAT}; use the version that wrote it")
    if not (path / TENSORS).is_file():
        raise DataError(f"{path / TENSORS} is missing although {MANIFEST} is there; copy the complete folder again")
    content = (path / TENSORS).read_bytes()
    if sha256(content) != manifest["sha256"]:
        raise DataError(f"{path / TENSORS} is damaged: its sha256 is not the manifest's; copy or distill it again")
    loaded = safetensors.numpy.load(content)
    # Older manifests say nothing of bits: there were 32.
    loaded = loaded if manifest.get("bits", 32) == 32 else _out_of_bits(loaded, manifest)
    arrays = {name: jnp.asarray(array) for name, array in loaded.items()}

    # Older manifests do not name their stores: these were two.
    stores = manifest.get("stores") or {part: "plain" if part in arrays else "factored" for part in STORED}

    def part(name: str, cls: type) -> Any:
        return cls(**{field: arrays[key] for field, key in _names(name, cls).items()})

    layout = Layout(**{key: tuple(value) if isinstance(value, list) else value for key, value in manifest["layout"].items()})
    images, reprs = (part(name, STORES[stores[name]].type) for name in STORED)
    networks = part("networks", Networks) if layout.count("network") else None
    return DistilledSet(images=images, reprs=reprs, networks=networks, layout=layout)
