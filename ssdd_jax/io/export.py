"""Distilled sets for other programs: all images and targets in plain files, with everything that training on them needs to know."""

import importlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike
from PIL import Image

from ssdd_jax.core.distilled import Layout, expand
from ssdd_jax.core.views import VIEWS
from ssdd_jax.errors import InputError, nearest
from ssdd_jax.io.artifacts import TENSORS, load_distilled
from ssdd_jax.io.cards import CARD, check_licence, dataset_card, run_of
from ssdd_jax.io.files import sha256, write_bytes
from ssdd_jax.io.hub import ORIGINAL, hub_library
from ssdd_jax.io.manifest import MANIFEST, SUMS, listed_files, read_manifest, write_folder
from ssdd_jax.io.pairs import EXPORT_FORMAT, EXPORT_KIND, normalization_of

FORMATS = ("safetensors", "npz", "png", "pt", "ddranking", "hf")
# Meaning of the targets, by `Layout.target_kind`.
TARGET_MEANINGS = {
    "representation": "the teacher's representation of the image under its view; the teacher's own numbers are target * scale + centre",
    "labels": "one number per class, one-hot labels (perhaps centred, perhaps moved by the distillation) of the image under its view",
    "logits": "one number per class, what a network trained on the labels returns for the image under its view, before the softmax",
}
# The published protocol for representations: KRR-ST's pretraining of the student and its linear evaluation.
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
_AXES = {
    "images_uint8": "A m H W C",
    "images": "A m H W C",
    "targets": "A m d",
    "x_syn": "A*m C H W",
    "y_syn": "A*m d",
    "hard_labels": "A*m",
    "lr": "",
}
# What the Hub shows of a repository.
PARQUET = "data/train-00000-of-00001.parquet"
_COLOURS = {1: "grey", 3: "RGB"}
_OWN_FILE = re.compile(
    r"export\.(npz|safetensors)|([xy]_syn|images|labels|representations|hard_labels|lr)\.pt|images/[a-z0-9_]+-\d{5,}\.png"
    rf"|{PARQUET}|{ORIGINAL}/({TENSORS}|{MANIFEST}|{SUMS})"
)

# File name -> its bytes and the arrays in it.
_Files = dict[str, tuple[bytes, dict[str, np.ndarray]]]


def export_distilled(source: str | Path, destination: str | Path, fmt: str, *, licence: str | None = None, repo: str = "USER/NAME") -> Path:
    """Write every view's images and targets of a distilled set as plain files, and a manifest that says how to train on them.

    With A views of m images: "A m H W C" images as uint8 pixels (rounded, clipped) and as normalised float32, float32 targets "A m d".
    `safetensors` and `npz`: one file, export.FORMAT, with `images_uint8`, `images` and `targets`. `png`: images/VIEW-INDEX.png and an
    export.npz with `images` and `targets`, since a PNG is clipped. `pt`: KRR-ST's x_syn.pt "A*m C H W" (normalised) and y_syn.pt "A*m d".
    `ddranking`: images.pt as x_syn.pt, labels.pt or representations.pt as y_syn.pt, of label sets also hard_labels.pt "A*m", sorted by
    class, and lr.pt where the set has a learning rate of its own; the manifest's `evaluation` says what DD-Ranking and DC-BENCH need
    besides. `hf`: the folder of a dataset repository on the Hugging Face Hub, with the set itself in distilled/, a parquet file that the
    Hub shows, and a card.
    manifest.json is written last, so a folder with one is complete; an earlier export in `destination` is replaced.

    Args:
        source: the folder that `save_distilled` wrote, with `normalization` among its metadata.
        destination: folder, made if it is missing.
        fmt: one of `FORMATS`.
        licence: for `hf` that of the source images, as the Hub spells it, such as cc-by-4.0.
        repo: for `hf` the name of the repository, which its card shows.

    Returns:
        The destination.

    Raises:
        InputError: an unknown format; no distilled set at `source`, or one without `normalization`; a destination that is a file or
            holds something else's manifest; `png` or `hf` for images that are neither grey nor RGB; `pt` or `ddranking` without PyTorch;
            `hf` without a licence or without the extra `hf`.

    Example:
        >>> export_distilled("runs/digits/distilled/ours/seed_0", "ours_export", "npz")  # doctest: +SKIP
    """
    source, destination = Path(source), Path(destination)
    if fmt not in FORMATS:
        raise InputError(f"format is {fmt!r}, expected one of {', '.join(FORMATS)}{nearest(str(fmt), FORMATS) or '; choose one'}")
    former = _check_destination(destination)
    if fmt == "hf":
        check_licence(licence)
    distilled = load_distilled(source)
    metadata = read_manifest(source) or {}
    images, targets = (np.asarray(array) for array in expand(distilled))
    mean, std = normalization_of(source, metadata, images.shape[-1])
    views = distilled.layout.views
    pixels, kind = to_uint8(images, mean, std), distilled.layout.target_kind
    if fmt == "hf":
        files = _hub_files(source, pixels, targets, views, kind)
    elif fmt == "ddranking":
        files = _ranking_files(images, targets, kind, metadata.get("learning_rate"))
    else:
        files = _encode(fmt, pixels, images, targets, views)
    manifest = _describe(fmt, files, metadata, images, mean, std, distilled.layout)
    if fmt == "hf":
        card = dataset_card(manifest, licence=check_licence(licence), parquet=PARQUET, repo=repo, run=run_of(source, metadata))
    # An old manifest must not vouch for left-over files. Only it knows the old files; their names are checked, since it may come from
    # anywhere.
    (destination / MANIFEST).unlink(missing_ok=True)
    for name in filter(_OWN_FILE.fullmatch, listed_files(destination, former)):
        (destination / name).unlink(missing_ok=True)
    if fmt == "hf":
        # Nothing vouches for the card: people edit it on the Hub.
        write_bytes(destination / CARD, card.encode())
    write_folder(destination, {name: content for name, (content, _) in files.items()}, manifest)
    return destination


def to_uint8(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> np.ndarray:
    """Return normalised images "... C" as uint8 pixels: clip(rint(255 (x std + mean)), 0, 255)."""
    images, mean, std = (np.asarray(values, np.float32) for values in (images, mean, std))
    return np.clip(np.rint(255 * (images * std + mean)), 0, 255).astype(np.uint8)


def _check_destination(destination: Path) -> dict[str, Any]:
    """Return the manifest of an earlier export, or an empty dict."""
    for place in (destination, *destination.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"destination {destination}: {place} is a file, expected a folder; choose another")
    former = read_manifest(destination) or {}
    if former and former.get("kind") != EXPORT_KIND:
        raise InputError(f"destination {destination} holds a {MANIFEST} that is not an export's and would be lost; choose another folder")
    return former


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
        _check_colours(fmt, pixels)
        files: _Files = {
            f"images/{view}-{i:05d}.png": (_png(pixels[a, i]), {f"images_uint8[{a}, {i}]": pixels[a, i]})
            for a, view in enumerate(views)
            for i in range(images.shape[1])
        }
        return files | {"export.npz": (_npz(both), both)}
    x_syn, y_syn = _rows(images, targets)
    return {"x_syn.pt": (_pt(fmt, x_syn), {"x_syn": x_syn}), "y_syn.pt": (_pt(fmt, y_syn), {"y_syn": y_syn})}


def _rows(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return images "A*m C H W" and targets "A*m d", view by view, as PyTorch's programs read them."""
    return np.ascontiguousarray(images.reshape(-1, *images.shape[2:]).transpose(0, 3, 1, 2)), targets.reshape(-1, targets.shape[-1])


def _ranking_files(images: np.ndarray, targets: np.ndarray, kind: str, rate: Any) -> _Files:
    """Return the tensors that DD-Ranking's evaluation is handed; it takes the images of label sets in the order of their classes."""
    x_syn, y_syn = _rows(images, targets)
    if kind == "representation":
        arrays = {"images": x_syn, "representations": y_syn}
    else:
        classes = y_syn.argmax(1)
        order = np.argsort(classes, kind="stable")
        arrays = {"images": x_syn[order], "labels": y_syn[order], "hard_labels": classes[order].astype(np.int64)}
    if rate is not None:
        arrays["lr"] = np.asarray(rate, np.float32)
    axes = {"images": "x_syn", "labels": "y_syn", "representations": "y_syn"}
    return {f"{name}.pt": (_pt("ddranking", array), {axes.get(name, name): array}) for name, array in arrays.items()}


def _hub_files(source: Path, pixels: np.ndarray, targets: np.ndarray, views: tuple[str, ...], kind: str) -> _Files:
    """Return the files of a Hub repository except its card: the set itself, and one row per view of each image for the Hub to show."""
    _check_colours("hf", pixels)
    datasets = hub_library("datasets", "--format=hf")
    types = datasets.Value("string"), datasets.Value("int32")
    columns = {
        "image": ([{"bytes": _png(image)} for view in pixels for image in view], datasets.Image()),
        kind: ([row.tolist() for view in targets for row in view], datasets.List(datasets.Value("float32"), length=targets.shape[-1])),
        "view": ([name for name in views for _ in pixels[0]], types[0]),
        "index": ([i for _ in views for i in range(len(pixels[0]))], types[1]),
    }
    if kind != "representation":
        columns["label"] = targets.argmax(-1).ravel().tolist(), types[1]
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    content = io.BytesIO()
    rows = datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)
    # Its own `to_parquet` shows a bar of progress.
    hub_library("pyarrow.parquet", "--format=hf").write_table(rows.with_format("arrow")[:], content)
    original = {f"{ORIGINAL}/{name}": ((source / name).read_bytes(), {}) for name in (TENSORS, MANIFEST, SUMS)}
    return {PARQUET: (content.getvalue(), {}), **original}


def _check_colours(fmt: str, pixels: np.ndarray) -> None:
    channels = pixels.shape[-1]
    if channels not in _COLOURS:
        raise InputError(f"--format={fmt}: images have {channels} channels, expected 1 (grey) or 3 (RGB); use safetensors, npz or pt")


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "png")
    return content.getvalue()


def _pt(fmt: str, array: np.ndarray) -> bytes:
    try:
        # Imported here: nothing else needs PyTorch.
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(f"--format={fmt} needs PyTorch: pip install torch, or use --format=npz") from error
    content = io.BytesIO()
    torch.save(torch.tensor(array), content)
    return content.getvalue()


def _describe(
    fmt: str, files: _Files, metadata: Mapping[str, Any], images: np.ndarray, mean: np.ndarray, std: np.ndarray, layout: Layout
) -> dict[str, Any]:
    """Return the manifest: all that is needed to train on the files elsewhere, and to check that they were read as intended."""
    channels, teacher = images.shape[-1], metadata.get("teacher") or {}
    of_teacher = layout.target_kind == "representation"
    targets = {"meaning": TARGET_MEANINGS[layout.target_kind]}
    if of_teacher:
        targets |= {key: teacher.get(key) for key in ("centre", "scale")}
    values = {
        "images": {
            "meaning": "normalised, not clipped: train on these",
            "range": [float(images.min()), float(images.max())],
            "of_pixel_0": ((0 - mean) / std).tolist(),
            "of_pixel_255": ((1 - mean) / std).tolist(),
        },
        "images_uint8": {"meaning": "pixels, rounded and clipped: to look at", "range": [0, 255]},
    }
    in_torch = fmt in ("pt", "ddranking")
    values = {"x_syn": values["images"]} if in_torch else values
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
        "format": EXPORT_FORMAT,
        "kind": EXPORT_KIND,
        "file_format": fmt,
        "files": {name: {"sha256": sha256(content), "arrays": _shapes(arrays)} for name, (content, arrays) in files.items()},
        "letters": "A views, m images, H rows from the top, W columns from the left, C colours, d numbers per target; A*m: view by view",
        "image_axes": _AXES["x_syn" if in_torch else "images"],
        "colours": _COLOURS.get(channels, f"{channels} channels"),
        "values": values,
        "normalization": {key: metadata["normalization"][key] for key in ("mean", "std")},
        "normalize": "x = (pixel / 255 - mean) / std, channel by channel: evaluation images too, before a network sees them",
        "views": [{"name": view, "meaning": VIEWS[view].meaning} for view in layout.views],
        "target_kind": layout.target_kind,
        "targets": targets,
        **{key: metadata.get(key) for key in kept},
        # Of sets that students are trained on at a rate of their own.
        **{key: metadata[key] for key in ("learning_rate",) if key in metadata},
        "published_protocol": PROTOCOL if of_teacher else None,
        **({"evaluation": evaluation_note(layout.target_kind, mean, std)} if fmt == "ddranking" else {}),
        "checksum": {
            "of": "the first view of the first image, normalised: float32, little endian, (H, W, C) in C order",
            "sha256": sha256(np.ascontiguousarray(images[0, 0], "<f4").tobytes()),
        },
        "source_sha256": metadata["sha256"],
    }


def evaluation_note(kind: str, mean: np.ndarray, std: np.ndarray) -> str:
    """Return what DD-Ranking and DC-BENCH need to evaluate an export: they measure labels, on images that are normalised alike."""
    numbers = lambda values: [round(float(value), 4) for value in values]
    common = (
        "DD-Ranking needs the real dataset, ipc, and test images normalised as these are: "
        f"custom_val_trans of ToTensor and Normalize({numbers(mean)}, {numbers(std)})"
    )
    if kind == "representation":
        return (
            f"{common}; it measures labels, which a set of representations has none of: with soft_label_mode 'M' a teacher of theirs "
            "labels images.pt, and its part with hard labels takes images sorted by class, which these are not"
        )
    return (
        f"{common}; hand it images.pt with labels.pt as soft_labels (soft_label_mode 'S', whose losses take logits) or with "
        "hard_labels.pt, and lr.pt, where there is one, as syn_lr; every class must have ipc images. "
        "DC-BENCH reads images.pt and hard_labels.pt as images_best.pt and labels_best.pt of its method tm"
    )


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    # A name that is not in `_AXES` is that of a single image.
    return {name: {"shape": list(a.shape), "dtype": str(a.dtype), "axes": _AXES.get(name, "H W C")} for name, a in arrays.items()}
