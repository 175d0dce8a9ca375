"""A distilled set on disk: `distilled.safetensors` and `manifest.json`, all that is needed to train on it elsewhere."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ssdd_jax.core.approximation import Networks
from ssdd_jax.core.distilled import DistilledSet, Layout, num_images, num_stored_scalars
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import sha256
from ssdd_jax.io.manifest import MANIFEST, read_manifest, write_folder
from ssdd_jax.registry import STORES

FORMAT = 1
TENSORS = "distilled.safetensors"
STORED = ("images", "reprs")


def _names(part: str, cls: type) -> dict[str, str]:
    """Return the fields of a part's dataclass and the names of their arrays: 'images.bases' and so on, or 'images' if there is only one."""
    fields = [field.name for field in dataclasses.fields(cls)]
    return {field: part if len(fields) == 1 else f"{part}.{field}" for field in fields}


def _flatten(distilled: DistilledSet) -> dict[str, np.ndarray]:
    """Return every array by its name."""
    arrays = {}
    for part in (*STORED, "networks"):
        value = getattr(distilled, part)
        if value is not None:
            arrays |= {name: getattr(value, field) for field, name in _names(part, type(value)).items()}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _store_name(part: str, store: Any) -> str:
    for name, kind in STORES.items():
        if kind.type is type(store):
            return name
    raise ValueError(
        f"save_distilled: {part} is a {type(store).__name__}, expected a store such as Plain({part}); "
        "a store of your own is added with STORES.register"
    )


def save_distilled(path: str | Path, compact: DistilledSet, **metadata: Any) -> Path:
    """Write a distilled set into the folder `path`; the manifest is written last, so a folder with one is complete.

    Args:
        path: folder, made if it is missing.
        compact: the distilled set.
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
    content = safetensors.numpy.save(arrays)
    manifest = {
        "format": FORMAT,
        "layout": dataclasses.asdict(compact.layout),
        "stores": stores,
        "image_axes": "NHWC",
        "num_images": num_images(compact),
        "num_views": len(compact.layout.views),
        "stored_scalars": num_stored_scalars(compact),
        "arrays": {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()},
        "sha256": sha256(content),
        **metadata,
    }
    write_folder(path, {TENSORS: content}, manifest)
    return path


def load_distilled(path: str | Path) -> DistilledSet:
    """Read a distilled set and check it against its manifest.

    Args:
        path: the folder that `save_distilled` wrote, such as `runs/digits/distilled/ours/seed_0`.

    Raises:
        InputError: the folder holds no distilled set.
        DataError: its files have changed since they were written.

    Example:
        >>> images, reprs = expand(load_distilled("my_set"))  # doctest: +SKIP
    """
    path = Path(path)
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
    arrays = {name: jnp.asarray(array) for name, array in safetensors.numpy.load(content).items()}

    # Older manifests do not name their stores: these were two.
    stores = manifest.get("stores") or {part: "plain" if part in arrays else "factored" for part in STORED}

    def part(name: str, cls: type) -> Any:
        return cls(**{field: arrays[key] for field, key in _names(name, cls).items()})

    layout = Layout(**{key: tuple(value) if isinstance(value, list) else value for key, value in manifest["layout"].items()})
    images, reprs = (part(name, STORES[stores[name]].type) for name in STORED)
    networks = part("networks", Networks) if layout.count("network") else None
    return DistilledSet(images=images, reprs=reprs, networks=networks, layout=layout)
