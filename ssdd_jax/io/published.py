"""Distilled sets as other people's programs leave them: files without a manifest, read as their user says."""

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.core.views import QUADRANTS
from ssdd_jax.errors import DataError, InputError, printable
from ssdd_jax.io.files import file_digest
from ssdd_jax.io.manifest import MANIFEST
from ssdd_jax.io.torch_files import read_torch
from ssdd_jax.settings.published import NONE, SetFacts

PUBLISHED_KIND = "published"
TORCH_SUFFIXES = (".pt", ".pth", ".pkl")
# KIP, FRePo.
_ARRAYS = (("images", "labels"), ("image", "label"))
# The second are the names in FRePo's own files.
_ZCA = (("mean", "inverse"), ("zca_mean", "rev_whitening_transform"))
# Errors of NumPy on files that are damaged, hold objects, or are something else.
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile)
_KRR_ST = ("x_syn.pt", "y_syn.pt")


@dataclass(frozen=True, eq=False)
class Published:
    """A published set.

    Attributes:
        images: "m H W C", as the file has them, without their whitening.
        targets: hard labels, integers "m"; or what the manifest's `target_kind` says, floats "m k".
        manifest: what a manifest would say: `files` with their digests, `normalization`, `target_kind`, `layout` with the views,
            `num_images`, `num_views`, `stored_scalars`, and `learning_rate` where the set was made with a rate of its own.
    """

    images: np.ndarray
    targets: np.ndarray
    manifest: dict[str, Any]


def is_published(path: Path) -> bool:
    """Return whether there is a published set, or several: a file of such a type, or a folder with some and without a manifest."""
    if path.is_dir():
        return not (path / MANIFEST).is_file() and bool(_candidates(path))
    return path.is_file() and path.suffix in (*TORCH_SUFFIXES, ".npz")


def refuse_published(paths: Iterable[Path], task: str) -> None:
    """Raise an InputError if there is a published set among some that a task is asked for."""
    for path in filter(is_published, paths):
        raise InputError(f"--set {path} is a published set, expected one with a {MANIFEST} for --task={task}; only evaluate reads it")


def read_published(path: Path, facts: SetFacts) -> list[Published]:
    """Read all sets of a file, running nothing that it contains.

    - DC, DSA, DM and IDM: res_*.pt with "data", one [images "m C H W", labels "m"] per experiment, which are as many sets.
    - MTT and DATM: images_*.pt "m C H W", and next to it labels_*.pt, "m" or "m k"; perhaps lr_*.pt, the learned rate.
    - KIP: an .npz with images "m H W C" and labels "m k"; FRePo: with image and label.

    Args:
        path: the file, or a folder with one of them.
        facts: what the file does not say.

    Raises:
        InputError: something is not said, contradicts the file, or the folder has several of them; shapes are unexpected.
        DataError: a file cannot be read.
    """
    file = _file_in(path)
    found, names, rate = _read_npz_set(file) if file.suffix == ".npz" else _read_torch_set(file)
    soft = any(targets.dtype.kind not in "iu" for _, targets in found)
    facts.require(("normalization", "views", "zca", *(("targets",) if soft else ())), file)
    if not soft and facts.targets == "logits":
        raise InputError(f"--set_targets is 'logits', the labels of {file} are integers; evaluate it in a call without that flag")
    files = {name: {"sha256": file_digest(file.with_name(name))} for name in names}
    if facts.zca != NONE:
        files["zca"] = {"sha256": _zca_digest(Path(str(facts.zca)))}
    sets = []
    for i, (images, targets) in enumerate(found):
        if facts.zca != NONE:
            images = _unwhiten(file, images, Path(str(facts.zca)))
        images = images if file.suffix == ".npz" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        about = {"experiment": i} if len(found) > 1 else {}
        listed = {name: {**entry, **about} for name, entry in files.items()}
        sets.append(Published(images, targets, _manifest(file, images, targets, facts, listed, rate)))
    return sets


def one_hot(whose: Any, labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    """Return hard labels as float32 rows "m k".

    Raises:
        InputError: the number of classes is not given, or a label is none of them.
    """
    if num_classes is None:
        raise InputError(f"{whose} has integer labels and does not say how many classes there are; give num_classes")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise InputError(f"{whose} has labels from {low} to {high}, expected 0 to {num_classes - 1}; evaluate it on its own dataset")
    return np.eye(num_classes, dtype=np.float32)[labels]


def _manifest(
    file: Path, images: np.ndarray, targets: np.ndarray, facts: SetFacts, files: dict[str, Any], rate: float | None
) -> dict[str, Any]:
    hard = targets.ndim == 1
    mean, std = facts.statistics(images.shape[3], file)
    mosaic = facts.views == "mosaic"
    if mosaic and (images.shape[1] % 2 or images.shape[2] % 2):
        raise InputError(f"--set_views is 'mosaic', {file} has images of {images.shape[1:3]}, expected even sides; --set_views=none")
    views = QUADRANTS if mosaic else ("identity",)
    return {
        "kind": PUBLISHED_KIND,
        "files": files,
        "normalization": {"mean": mean, "std": std},
        "target_kind": "labels" if hard else facts.targets,
        "layout": {"views": list(views), "view_targets": ["stored", *["shared"] * (len(views) - 1)]},
        "num_images": len(images),
        "num_views": len(views),
        "stored_scalars": len(images) * (prod(images.shape[1:]) + (1 if hard else targets.shape[1])),
        **({} if rate is None else {"learning_rate": rate}),
    }


def _candidates(folder: Path) -> list[Path]:
    """Return the files in a folder that may be published sets, without those that belong to one of them."""
    files = [file for suffix in (*TORCH_SUFFIXES, ".npz") for file in folder.glob(f"*{suffix}")]
    return sorted(file for file in files if not file.name.startswith(("labels_", "lr_")) and file.name not in _KRR_ST)


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = _candidates(path)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5]) + (" and more" if len(files) > 5 else "")
        raise InputError(f"{path} has several files that may be sets ({names}), expected one; give it as --set={files[-1]}")
    return files[0]


def _read_torch_set(file: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str], float | None]:
    """Return images and targets of every experiment, the names of the files that they are in, and the learned rate."""
    content, names, rate = read_torch(file), [file.name], None
    if isinstance(content, dict) and isinstance(content.get("data"), list | tuple):
        found = [tuple(entry[:2]) if isinstance(entry, list | tuple) else (entry,) for entry in content["data"]]
    elif isinstance(content, np.ndarray) and file.name.startswith("images_"):
        ending = file.name.removeprefix("images_").removeprefix("zca_")
        labels, lr = file.with_name(f"labels_{ending}"), file.with_name(f"lr_{ending}")
        if not labels.is_file():
            raise InputError(f"no {labels.name} next to {file}, expected the labels of its images there; copy it, too")
        found, names = [(content, read_torch(labels))], [file.name, labels.name]
        if lr.is_file():
            names, rate = [*names, lr.name], _rate(lr)
    else:
        raise _not_a_set(file, f"a tensor of shape {content.shape}" if isinstance(content, np.ndarray) else _in_words(content))
    if not found:
        raise _not_a_set(file, "no experiments")
    return [_checked(file, entry) for entry in found], names, rate


def _read_npz_set(file: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str], None]:
    return [_checked(file, _read_npz(file, _ARRAYS))], [file.name], None


def _checked(file: Path, entry: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return images and targets if they are of the shapes and types that such files have."""
    if len(entry) != 2 or not all(isinstance(part, np.ndarray) for part in entry):
        raise _not_a_set(file, ", ".join(map(_in_words, entry)))
    images, targets = entry
    fits = (targets.ndim, targets.dtype.kind) in ((1, "i"), (1, "u"), (2, "f"))
    if images.ndim != 4 or not fits or len(images) != len(targets) or 0 in images.shape + targets.shape:
        raise InputError(
            f"{file} has images of shape {images.shape} and {targets.dtype} labels {targets.shape}, "
            "expected four axes, and one integer or one row of floats per image; give another file"
        )
    return images, targets


def _not_a_set(file: Path, found: str) -> DataError:
    return DataError(
        printable(
            f"{file} holds {found:.200}, expected 'data' with [images, labels] per experiment, or a file images_*.pt "
            "of images next to labels_*.pt; give another file"
        )
    )


def _in_words(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {[str(name)[:40] for name in list(content)[:8]]}"
    return str(content)[:100] if not isinstance(content, np.ndarray | list | tuple) else f"a {type(content).__name__}"


def _rate(file: Path) -> float:
    rate = read_torch(file)
    if not isinstance(rate, np.ndarray | float) or np.size(rate) != 1 or not np.isfinite(rate).all():
        raise DataError(f"{file} is not one finite number, expected the learning rate that the set was made with; copy it again")
    return float(np.reshape(rate, ()))


def _read_npz(file: Path, choices: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays of an .npz file that have the first of the pairs of names that are there."""
    try:
        # Opened here: of a damaged file, NumPy leaves it open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            names = list(arrays)
            for first, second in choices:
                if {first, second} <= set(names):
                    return arrays[first], arrays[second]
    except _UNREADABLE as error:
        raise DataError(f"cannot read {file} ({type(error).__name__}), expected what numpy.savez writes; copy it again") from error
    found = ", ".join(names[:8]) or "nothing"
    expected = " or ".join(" and ".join(pair) for pair in choices)
    raise DataError(printable(f"{file} has {found:.200}, expected {expected}; give another file"))


def _zca_digest(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"--set_zca: no file {file}; give an .npz file with mean and inverse, or --set_zca=none")
    return file_digest(file)


def _unwhiten(whose: Path, images: np.ndarray, file: Path) -> np.ndarray:
    """Return images before their whitening: x inverse + mean, each flattened along the axes that its own file has."""
    mean, inverse = _read_npz(file, _ZCA)
    size = prod(images.shape[1:])
    if mean.size != size or inverse.shape != (size, size):
        raise InputError(
            f"--set_zca {file} has a mean of {mean.size} numbers and an inverse of shape {inverse.shape}, {whose} has images of {size}; "
            "give that of its dataset"
        )
    rows = images.reshape(len(images), size).astype(np.float32)
    return (rows @ inverse.astype(np.float32) + mean.reshape(-1).astype(np.float32)).reshape(images.shape)
