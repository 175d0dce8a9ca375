"""What a student is trained on, from any source: our distilled sets, exports of them, other people's pairs, and published files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ssdd_jax.core.distilled import expand
from ssdd_jax.core.views import apply_views
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.artifacts import TENSORS, load_distilled
from ssdd_jax.io.files import sha256
from ssdd_jax.io.hub import ORIGINAL
from ssdd_jax.io.manifest import MANIFEST, listed_files, read_manifest
from ssdd_jax.io.published import is_published, one_hot, read_published
from ssdd_jax.io.torch_files import read_torch
from ssdd_jax.settings.fields import TARGET_KINDS
from ssdd_jax.settings.published import SetFacts

EXPORT_KIND, EXPORT_FORMAT = "ssdd_jax export", 1
PAIRS_KIND = "pairs"
_GIVEN = "normalization, targets, views, zca, experiment or num_classes"


# eq=False: comparing arrays has no single truth value.
@dataclass(frozen=True, eq=False)
class Pairs:
    """What a student is trained on, one row per view of each image.

    Attributes:
        images: float32 "n H W C", normalised: (pixel in [0, 1] - mean) / std.
        targets: float32 "n d", what the student should output.
        manifest: what the folder says about them; `manifest["normalization"]` has "mean" and "std", one number per channel, and
            `manifest["learning_rate"]`, where there is one, is the student's rate that the set was made with.
    """

    images: np.ndarray
    targets: np.ndarray
    manifest: dict[str, Any]

    @property
    def target_kind(self) -> str:
        """Return what the targets are: 'representation' unless the manifest says otherwise."""
        layout = self.manifest.get("layout") or {}
        return self.manifest.get("target_kind") or layout.get("target_kind") or TARGET_KINDS[0]

    @property
    def learning_rate(self) -> float | None:
        """Return the learning rate that they were made with, for students of theirs; None unless the manifest has one."""
        rate = self.manifest.get("learning_rate")
        return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None


def read_pairs(
    path: str | Path,
    *,
    normalization: Any = None,
    targets: str | None = None,
    views: str | None = None,
    zca: str | Path | None = None,
    experiment: int | None = None,
    num_classes: int | None = None,
) -> Pairs:
    """Read what a student is trained on, and check it against its manifest.

    The folder is one of three, told apart by its manifest.json:

    - what `save_distilled` wrote, with `normalization` among its metadata;
    - what `export_distilled` wrote, in any format; PyTorch is not needed;
    - somebody else's set. Its manifest.json has at least {"kind": "pairs", "normalization": {"mean": [...], "std": [...]}} with one number
      per channel, of pixels in [0, 1]. "name", "target_kind" (representation, labels or logits) and "files" ({FILE: {"sha256": ...}},
      which is then checked) are optional, and everything else is kept. Next to it are images.npy "n H W C", uint8 pixels or normalised
      floats, and targets.npy "n d", floats; or x_syn.pt "n C H W", normalised floats, and y_syn.pt "n d".

    Or it is a published set, which has no manifest: a file of DC, DSA, DM, IDM, MTT, DATM, KIP or FRePo, or a folder with one
    (`ssdd_jax.io.published.read_published` has the formats). The other arguments say what such a file does not, as the flags of the
    command line do, `--set_views` being `views`; hard labels become one-hot rows.

    Args:
        path: the folder, or the published file.
        normalization: what published images were normalised with: a name among `ssdd_jax.settings.published.STATISTICS`, 'pixels' for
            images in [0, 1] that were not, or {"mean": [...], "std": [...]}.
        targets: what published targets are that are not integers, 'labels' or 'logits'.
        views: 'mosaic' for images that stand for their four enlarged quadrants, as IDM's do, or 'none'.
        zca: 'none', or an .npz file with the whitening that the images went through: `mean` "d" and `inverse` "d d", d being the
            numbers of an image flattened as the published file has it. What comes out of it is what `normalization` is about.
        experiment: which set, from 0, of a file with several.
        num_classes: of hard labels.

    Raises:
        InputError: the folder is none of these, or its files are missing, damaged, of the wrong shape or type, or not finite; something
            that a published set does not say is not given, or something is given for a set that has a manifest.

    Example:
        >>> pairs = read_pairs("runs/digits/distilled/ours/seed_0")  # doctest: +SKIP
    """
    path, facts = Path(path), SetFacts(normalization, targets, views, None if zca is None else str(zca))
    if is_published(path):
        return _read_published(path, facts, experiment, num_classes)
    manifest = read_manifest(path) or {}
    if manifest and (facts.given or experiment is not None or num_classes is not None):
        raise InputError(f"{path / MANIFEST} says how to read the set there; give its folder alone, without {_GIVEN}")
    return _read_with_manifest(path, manifest)


def _read_with_manifest(path: Path, manifest: dict[str, Any]) -> Pairs:
    listed_files(path, manifest)
    kind = manifest.get("kind")
    if kind == EXPORT_KIND:
        if manifest.get("format") != EXPORT_FORMAT:
            raise InputError(
                f"{path / MANIFEST} has format {manifest.get('format')!r}, expected {EXPORT_FORMAT}; use the version that wrote it"
            )
        images, targets = _read_export(path, manifest)
    elif kind == PAIRS_KIND:
        images, targets = _read_foreign(path, manifest)
    elif kind is None and "layout" in manifest:
        images, targets = (np.asarray(array) for array in expand(load_distilled(path)))
    else:
        what = f"a {MANIFEST} of kind {kind!r}" if manifest else _listing(path)
        raise InputError(
            f"no training pairs at {path}, found {what}; expected the folder of a distilled set, of an export, "
            f"a {MANIFEST} of kind {PAIRS_KIND!r} next to images.npy and targets.npy, or a published file (.pt, .npz)"
        )
    if images.ndim == 5:
        images, targets = (array.reshape(-1, *array.shape[2:]) for array in (images, targets))
    return _check_pairs(path, images, targets, manifest)


def normalization_of(path: Path, manifest: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and std that a manifest says its images were normalised with, float32 "C".

    Raises:
        InputError: it has none, or not one number per channel.
    """
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
            "the stds positive: one per channel of the images; correct them"
        )
    return mean, std


def _read_published(path: Path, facts: SetFacts, experiment: int | None, num_classes: int | None) -> Pairs:
    sets = read_published(path, facts)
    if experiment is None and len(sets) > 1:
        raise InputError(f"{path} has {len(sets)} experiments; give experiment, 0 to {len(sets) - 1}")
    if not 0 <= (experiment or 0) < len(sets):
        raise InputError(f"experiment is {experiment}, {path} has {len(sets)}; give 0 to {len(sets) - 1}")
    found = sets[experiment or 0]
    hard = found.targets.ndim == 1
    targets = one_hot(path, found.targets, num_classes) if hard else found.targets
    if num_classes is not None and targets.shape[1] != num_classes:
        raise InputError(
            f"{path} has {found.manifest['target_kind']} of {targets.shape[1]} numbers, expected {num_classes}, one per class; "
            "evaluate it on its own dataset"
        )
    views = found.manifest["layout"]["views"]
    images = _normalised(path, found.images, found.manifest)
    if views != ["identity"]:
        images = np.asarray(apply_views(jnp.asarray(images, jnp.float32), views)).reshape(-1, *images.shape[1:])
    return _check_pairs(path, images, np.tile(targets, (len(views), 1)), found.manifest)


def _normalised(path: Path, images: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """Return images "n H W C" as they are, or uint8 pixels normalised as the manifest says."""
    mean, std = normalization_of(path, manifest, images.shape[3])
    return (images.astype(np.float32) / np.float32(255) - mean) / std if images.dtype == np.uint8 else images


def _read_export(path: Path, manifest: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    names = _check_files(path, manifest)
    if {"x_syn.pt", "y_syn.pt"} <= names:
        return _read_syn(path, "x_syn.pt", "y_syn.pt")
    for targets in ("labels.pt", "representations.pt"):
        if {"images.pt", targets} <= names:
            return _read_syn(path, "images.pt", targets)
    if f"{ORIGINAL}/{TENSORS}" in names:
        images, targets = expand(load_distilled(path / ORIGINAL))
        return np.asarray(images), np.asarray(targets)
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
        images, targets = _read_syn(path, "x_syn.pt", "y_syn.pt")
    else:
        images, targets = (_read_npy(path, name) for name in ("images.npy", "targets.npy"))
    if images.ndim != 4:
        raise InputError(
            f"images in {path} have shape {images.shape}, expected (n, H, W, C) in a .npy, (n, C, H, W) in a .pt; reshape them"
        )
    return _normalised(path, images, manifest), targets


def _check_files(path: Path, manifest: Mapping[str, Any]) -> set[str]:
    """Check the sha256 of all files that the manifest lists, and return their names."""
    for name, entry in listed_files(path, manifest).items():
        if not (path / name).is_file():
            raise DataError(f"{path / name} is missing although {MANIFEST} lists it; copy the complete folder again")
        if not isinstance(entry, dict) or sha256((path / name).read_bytes()) != entry.get("sha256"):
            raise DataError(f"{path / name} is damaged: its sha256 is not the manifest's; copy or export it again")
    return set(listed_files(path, manifest))


def _read_syn(path: Path, *names: str) -> tuple[np.ndarray, np.ndarray]:
    images, targets = (read_torch(path / name) for name in names)
    if not isinstance(images, np.ndarray) or not isinstance(targets, np.ndarray) or images.ndim != 4:
        raise InputError(f"{' and '.join(names)} in {path} are not tensors, expected (n, C, H, W) and (n, d); save such tensors")
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
    normalization_of(path, manifest, images.shape[3])
    pairs = Pairs(np.asarray(images, np.float32), np.asarray(targets, np.float32), manifest)
    if pairs.target_kind not in TARGET_KINDS:
        raise InputError(f"{path / MANIFEST} has target_kind {pairs.target_kind!r}, expected one of {', '.join(TARGET_KINDS)}; correct it")
    return pairs


def _listing(path: Path) -> str:
    """Return in words what is at a path."""
    if not path.is_dir():
        return "a file" if path.exists() else "nothing"
    names = sorted(entry.name for entry in path.iterdir())
    return f"{', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "an empty folder"
