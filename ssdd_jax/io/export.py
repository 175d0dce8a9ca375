"""Distilled sets for other programs, and from them: all images and targets in plain files, with all that training on them needs to know."""

import importlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike
from PIL import Image

from ssdd_jax.core.distilled import expand
from ssdd_jax.errors import DataError, InputError, nearest
from ssdd_jax.io.artifacts import MANIFEST, load_distilled, read_manifest, write_folder
from ssdd_jax.io.files import sha256
from ssdd_jax.io.torch_files import read_torch
from ssdd_jax.settings.spec import TARGET_KINDS

FORMATS = ("safetensors", "npz", "png", "pt")
KIND, FORMAT = "ssdd_jax export", 1
PAIRS_KIND = "pairs"
VIEW_MEANINGS = {
    "identity": "the image itself",
    "rot90": "a quarter turn counter-clockwise, numpy.rot90(image, 1)",
    "rot180": "a half turn, numpy.rot90(image, 2)",
    "rot270": "a quarter turn clockwise, numpy.rot90(image, 3)",
    "hflip": "mirrored left to right",
    "vflip": "mirrored top to bottom",
    "zoom_tl": "the top left quadrant, enlarged bilinearly to the full size",
    "zoom_tr": "the top right quadrant, enlarged bilinearly to the full size",
    "zoom_bl": "the bottom left quadrant, enlarged bilinearly to the full size",
    "zoom_br": "the bottom right quadrant, enlarged bilinearly to the full size",
    "shift_up": "moved up by 2 pixels; normalised zeros (the mean colour) come in",
    "shift_down": "moved down by 2 pixels; normalised zeros (the mean colour) come in",
    "shift_left": "moved left by 2 pixels; normalised zeros (the mean colour) come in",
    "shift_right": "moved right by 2 pixels; normalised zeros (the mean colour) come in",
    "dim": "normalised values times 0.7",
    "bright": "normalised values times 1.3",
}
# The published protocol: KRR-ST's pretraining of the student and its linear evaluation.
PROTOCOL = {
    "pretraining": {
        "loss": "mean squared error between the network's outputs and the targets, over batch and width",
        "optimizer": "SGD",
        "learning_rate": 0.1,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "weight_decay_on": "all parameters, biases and batch norms too",
        "batch_size": 256,
        "epochs": 1000,
        "rows": "every view of every image is a row",
        "augmentation": "none",
    },
    "linear_probe": {
        "features": "drop the last linear layer; freeze; flattened features in evaluation mode of normalised images, no augmentation",
        "loss": "cross-entropy of a linear layer",
        "optimizer": "SGD",
        "learning_rate": 0.2,
        "schedule": "cosine to 0",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "batch_size": 512,
        "steps": 5000,
    },
}
_AXES = {"images_uint8": "A m H W C", "images": "A m H W C", "targets": "A m d", "x_syn": "A*m C H W", "y_syn": "A*m d"}
_COLOURS = {1: "grey", 3: "RGB"}
_OWN_FILE = re.compile(r"export\.(npz|safetensors)|[xy]_syn\.pt|images/[a-z0-9_]+-\d{5,}\.png")

# A file's name to its bytes and the arrays in it.
_Files = dict[str, tuple[bytes, dict[str, np.ndarray]]]


# eq=False: comparing arrays has no single truth value.
@dataclass(frozen=True, eq=False)
class Pairs:
    """What a student is trained on, every view of every image a row.

    Attributes:
        images: float32 "n H W C", normalised: (pixel in [0, 1] - mean) / std.
        targets: float32 "n d", what the student is to output.
        manifest: what the folder says of them; `manifest["normalization"]` has "mean" and "std", one number a channel.
    """

    images: np.ndarray
    targets: np.ndarray
    manifest: dict[str, Any]

    @property
    def target_kind(self) -> str:
        """Return what the targets are: 'representation' where the manifest does not say otherwise."""
        layout = self.manifest.get("layout") or {}
        return self.manifest.get("target_kind") or layout.get("target_kind") or TARGET_KINDS[0]


def export_distilled(source: str | Path, destination: str | Path, fmt: str) -> Path:
    """Write every view's images and targets of a distilled set as plain files, and a manifest that says how to train on them.

    With A views of m images: "A m H W C" images as uint8 pixels (rounded, clipped) and as normalised float32, float32 targets "A m d".
    `safetensors` and `npz`: one file, export.FORMAT, with `images_uint8`, `images` and `targets`. `png`: images/VIEW-INDEX.png and an
    export.npz with `images` and `targets`, since a PNG is clipped. `pt`: KRR-ST's x_syn.pt "A*m C H W" (normalised) and y_syn.pt "A*m d".
    manifest.json is written last, so a folder with one is whole; an earlier export in `destination` is replaced.

    Args:
        source: the folder that `save_distilled` wrote, with `normalization` among its metadata.
        destination: folder, made if it is missing.
        fmt: one of `FORMATS`.

    Returns:
        The destination.

    Raises:
        InputError: an unknown format; no distilled set at `source`, or one without `normalization`; a destination that is a file or
            holds something else's manifest; `png` for images that are neither grey nor RGB; `pt` without PyTorch.

    Example:
        >>> export_distilled("runs/digits/distilled/ours/seed_0", "ours_export", "npz")  # doctest: +SKIP
    """
    source, destination = Path(source), Path(destination)
    if fmt not in FORMATS:
        raise InputError(f"format is {fmt!r}, expected one of {', '.join(FORMATS)}{nearest(str(fmt), FORMATS) or '; choose one'}")
    former = _check_destination(destination)
    distilled = load_distilled(source)
    metadata = _read_manifest(source)
    images, targets = (np.asarray(array) for array in expand(distilled))
    mean, std = _statistics(source, metadata, images.shape[-1])
    views = distilled.layout.views
    files = _encode(fmt, to_uint8(images, mean, std), images, targets, views)
    manifest = _describe(fmt, files, metadata, images, mean, std, views)
    # An old manifest must not vouch for what is left; and it alone knows the old files, whose names are checked since it may come from
    # anywhere.
    (destination / MANIFEST).unlink(missing_ok=True)
    for name in filter(_OWN_FILE.fullmatch, former.get("files", {})):
        (destination / name).unlink(missing_ok=True)
    write_folder(destination, {name: content for name, (content, _) in files.items()}, manifest)
    return destination


def to_uint8(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
    """Return normalised images "... C" as uint8 pixels: clip(rint(255 (x std + mean)), 0, 255)."""
    images, mean, std = (np.asarray(values, np.float32) for values in (images, mean, std))
    return np.clip(np.rint(255 * (images * std + mean)), 0, 255).astype(np.uint8)


def read_pairs(path: str | Path) -> Pairs:
    """Read what a student is trained on, and check it against its manifest.

    The folder is one of three, told apart by its manifest.json:
    - what `save_distilled` wrote, with `normalization` among its metadata;
    - what `export_distilled` wrote, in any format; PyTorch is not needed;
    - somebody else's set. Its manifest.json has at least {"kind": "pairs", "normalization": {"mean": [...], "std": [...]}} with one number
      a channel, of pixels in [0, 1]; "name" and "files" ({FILE: {"sha256": ...}}, which is then checked) are optional, and all else is
      kept. Beside it images.npy "n H W C", uint8 pixels or normalised floats, and targets.npy "n d", floats; or x_syn.pt "n C H W",
      normalised floats, and y_syn.pt "n d".

    Args:
        path: the folder.

    Raises:
        InputError: the folder is none of these, or its files are missing, damaged, of the wrong shape or type, or not finite.

    Example:
        >>> pairs = read_pairs("runs/digits/distilled/ours/seed_0")  # doctest: +SKIP
    """
    path = Path(path)
    manifest = _read_manifest(path)
    kind = manifest.get("kind")
    if kind == KIND:
        if manifest.get("format") != FORMAT:
            raise InputError(f"{path / MANIFEST} has format {manifest.get('format')!r}, expected {FORMAT}; use the version that wrote it")
        images, targets = _read_export(path, manifest)
    elif kind == PAIRS_KIND:
        images, targets = _read_foreign(path, manifest)
    elif kind is None and "layout" in manifest:
        images, targets = (np.asarray(array) for array in expand(load_distilled(path)))
    else:
        what = f"a {MANIFEST} of kind {kind!r}" if manifest else _listing(path)
        raise InputError(
            f"no training pairs at {path}, found {what}; expected the folder of a distilled set, of an export, "
            f"or a {MANIFEST} of kind {PAIRS_KIND!r} beside images.npy and targets.npy"
        )
    if images.ndim == 5:
        images, targets = (array.reshape(-1, *array.shape[2:]) for array in (images, targets))
    return _check_pairs(path, images, targets, manifest)


def _check_destination(destination: Path) -> dict[str, Any]:
    """Return the manifest of an earlier export, or an empty one."""
    for place in (destination, *destination.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"destination {destination}: {place} is a file, expected a folder; choose another")
    former = _read_manifest(destination)
    if former and former.get("kind") != KIND:
        raise InputError(f"destination {destination} holds a {MANIFEST} that is no export's and would be lost; choose another folder")
    return former


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest in a folder; an empty one when there is none."""
    manifest = read_manifest(path) or {}
    if not isinstance(manifest.get("files", {}), dict):
        raise InputError(f"{path / MANIFEST} has 'files' that are no JSON object, expected one of names; write it again")
    return manifest


def _statistics(path: Path, manifest: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std, float32 "C"."""
    normalization = manifest.get("normalization")
    try:
        mean, std = (np.asarray(normalization[key], np.float32) for key in ("mean", "std"))  # pyright: ignore[reportOptionalSubscript]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path / MANIFEST} has normalization {normalization!r}, expected {{'mean': [...], 'std': [...]}} of pixels in [0, 1]; "
            "write the statistics that its images were normalised with"
        ) from None
    if mean.shape != (channels,) or std.shape != (channels,) or not np.isfinite([mean, std]).all() or not (std > 0).all():
        raise InputError(
            f"{path / MANIFEST} has mean {mean.tolist()} and std {std.tolist()}, expected {channels} finite numbers each, "
            "the stds positive: one a channel of the images; correct them"
        )
    return mean, std


def _encode(fmt: str, pixels: np.ndarray, images: np.ndarray, targets: np.ndarray, views: tuple[str, ...]) -> _Files:
    """Return all files in memory, so that nothing on disk is touched unless all of them can be made."""
    both = {"images": images, "targets": targets}
    if fmt == "safetensors":
        arrays = {"images_uint8": pixels, **both}
        return {"export.safetensors": (safetensors.numpy.save(arrays), arrays)}
    if fmt == "npz":
        arrays = {"images_uint8": pixels, **both}
        return {"export.npz": (_npz(arrays), arrays)}
    if fmt == "png":
        if images.shape[-1] not in _COLOURS:
            raise InputError(
                f"--format=png: images have {images.shape[-1]} channels, expected 1 (grey) or 3 (RGB); use safetensors, npz or pt"
            )
        files: _Files = {
            f"images/{view}-{i:05d}.png": (_png(pixels[a, i]), {f"images_uint8[{a}, {i}]": pixels[a, i]})
            for a, view in enumerate(views)
            for i in range(images.shape[1])
        }
        return files | {"export.npz": (_npz(both), both)}
    x_syn = np.ascontiguousarray(images.reshape(-1, *images.shape[2:]).transpose(0, 3, 1, 2))
    y_syn = targets.reshape(-1, targets.shape[-1])
    return {"x_syn.pt": (_pt(x_syn), {"x_syn": x_syn}), "y_syn.pt": (_pt(y_syn), {"y_syn": y_syn})}


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "png")
    return content.getvalue()


def _pt(array: np.ndarray) -> bytes:
    try:
        # Nothing else needs PyTorch.
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError("--format=pt needs PyTorch: pip install torch, or use --format=npz") from error
    content = io.BytesIO()
    torch.save(torch.tensor(array), content)
    return content.getvalue()


def _describe(
    fmt: str, files: _Files, metadata: Mapping[str, Any], images: np.ndarray, mean: np.ndarray, std: np.ndarray, views: tuple[str, ...]
) -> dict[str, Any]:
    """Return the manifest: all that is needed to train on the files elsewhere, and to check that they were read as they were meant."""
    channels, teacher = images.shape[-1], metadata.get("teacher") or {}
    values = {
        "images": {
            "meaning": "normalised, not clipped: train on these",
            "range": [float(images.min()), float(images.max())],
            "of_pixel_0": ((0 - mean) / std).tolist(),
            "of_pixel_255": ((1 - mean) / std).tolist(),
        },
        "images_uint8": {"meaning": "pixels, rounded and clipped: to look at", "range": [0, 255]},
    }
    values = {"x_syn": values["images"]} if fmt == "pt" else values
    kept = (
        "dataset",
        "method",
        "seed",
        "num_images",
        "num_views",
        "stored_scalars",
        "layout",
        "steps",
        "seconds",
        "approximation",
        "teacher",
    )
    return {
        "format": FORMAT,
        "kind": KIND,
        "file_format": fmt,
        "files": {name: {"sha256": sha256(content), "arrays": _shapes(arrays)} for name, (content, arrays) in files.items()},
        "letters": "A views, m images, H rows from the top, W columns from the left, C colours, d numbers a target; A*m: view by view",
        "image_axes": _AXES["x_syn" if fmt == "pt" else "images"],
        "colours": _COLOURS.get(channels, f"{channels} channels"),
        "values": values,
        "normalization": {key: metadata["normalization"][key] for key in ("mean", "std")},
        "normalize": "x = (pixel / 255 - mean) / std, channel by channel: evaluation images too, before a network sees them",
        "views": [{"name": view, "meaning": VIEW_MEANINGS[view]} for view in views],
        "targets": {
            "meaning": "the teacher's representation of the image under its view; the teacher's own numbers are target * scale + centre",
            "centre": teacher.get("centre"),
            "scale": teacher.get("scale"),
        },
        **{key: metadata.get(key) for key in kept},
        "published_protocol": PROTOCOL,
        "checksum": {
            "of": "the first view of the first image, normalised: float32, little endian, (H, W, C) in C order",
            "sha256": sha256(np.ascontiguousarray(images[0, 0], "<f4").tobytes()),
        },
        "source_sha256": metadata["sha256"],
    }


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    # A name that is not of `_AXES` is that of one image.
    return {name: {"shape": list(a.shape), "dtype": str(a.dtype), "axes": _AXES.get(name, "H W C")} for name, a in arrays.items()}


def _read_export(path: Path, manifest: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    names = _check_files(path, manifest)
    if {"x_syn.pt", "y_syn.pt"} <= names:
        return _read_syn(path)
    if "export.safetensors" in names:
        arrays = safetensors.numpy.load_file(path / "export.safetensors")
        return arrays["images"], arrays["targets"]
    if "export.npz" in names:
        with np.load(path / "export.npz", allow_pickle=False) as arrays:
            return arrays["images"], arrays["targets"]
    raise InputError(f"{path / MANIFEST} lists no file of an export, found {', '.join(sorted(names)) or 'none'}; export the set again")


def _read_foreign(path: Path, manifest: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    _check_files(path, manifest)
    if (path / "x_syn.pt").is_file() and (path / "y_syn.pt").is_file():
        images, targets = _read_syn(path)
    else:
        images, targets = (_read_npy(path, name) for name in ("images.npy", "targets.npy"))
    if images.ndim != 4:
        raise InputError(
            f"images in {path} have shape {images.shape}, expected (n, H, W, C) in a .npy, (n, C, H, W) in a .pt; reshape them"
        )
    mean, std = _statistics(path, manifest, images.shape[3])
    if images.dtype == np.uint8:
        images = (images.astype(np.float32) / np.float32(255) - mean) / std
    return images, targets


def _check_files(path: Path, manifest: Mapping[str, Any]) -> set[str]:
    """Check the sha256 of all files that the manifest lists, and return their names."""
    for name, entry in manifest.get("files", {}).items():
        if not (path / name).is_file():
            raise DataError(f"{path / name} is missing although {MANIFEST} lists it; copy the whole folder again")
        if not isinstance(entry, dict) or sha256((path / name).read_bytes()) != entry.get("sha256"):
            raise DataError(f"{path / name} is damaged: its sha256 is not the manifest's; copy or export it again")
    return set(manifest.get("files", {}))


def _read_syn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, targets = (read_torch(path / name) for name in ("x_syn.pt", "y_syn.pt"))
    if not isinstance(images, np.ndarray) or not isinstance(targets, np.ndarray) or images.ndim != 4:
        raise InputError(f"x_syn.pt and y_syn.pt in {path} are not a tensor (n, C, H, W) and one (n, d), which is expected; save such")
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), targets


def _read_npy(path: Path, name: str) -> np.ndarray:
    if not (path / name).is_file():
        raise InputError(f"no {name} in {path}, found {_listing(path)}; expected images.npy and targets.npy, or x_syn.pt and y_syn.pt")
    try:
        array = np.load(path / name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path / name} ({type(error).__name__}), expected what numpy.save writes; write it again") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path / name} is an archive, expected one array; write it with numpy.save")
    return array


def _check_pairs(path: Path, images: np.ndarray, targets: np.ndarray, manifest: dict[str, Any]) -> Pairs:
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets) or 0 in images.shape + targets.shape:
        raise InputError(
            f"images in {path} have shape {images.shape} and targets {targets.shape}, expected (n, H, W, C) and (n, d), n > 0; reshape them"
        )
    for name, array in (("images", images), ("targets", targets)):
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(
                f"{name} in {path} are {array.dtype}, expected finite floating-point numbers (images may be uint8); convert them"
            )
    _statistics(path, manifest, images.shape[3])
    return Pairs(np.asarray(images, np.float32), np.asarray(targets, np.float32), manifest)


def _listing(path: Path) -> str:
    """Return in words what is at a path."""
    if not path.is_dir():
        return "a file" if path.exists() else "nothing"
    names = sorted(entry.name for entry in path.iterdir())
    return f"{', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "an empty folder"
