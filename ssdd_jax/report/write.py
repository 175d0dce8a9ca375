"""report/results.md and its pictures, from the files of a finished run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ssdd_jax.core.distilled import num_images
from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.io.files import write_bytes
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.report import figures
from ssdd_jax.report.tables import main_rows, results_tables, to_markdown, views_table

NO_PLOTS = "loss curves skipped: matplotlib is not installed; pip install ssdd-jax[plots]"


def write_report(workdir: str | Path) -> list[str]:
    """Write report/results.md and its PNGs into the folder of a finished run.

    Args:
        workdir: holds results.json, and metrics.jsonl and distilled/ for the pictures.

    Returns:
        One line for the user for each thing that was left out.

    Raises:
        InputError: results.json is missing or is not valid JSON.

    Example:
        >>> write_report("runs/digits")  # doctest: +SKIP
        []
    """
    workdir = Path(workdir)
    results = read_results(workdir / "results.json")
    folder, notes = workdir / "report", []
    (_, main), *others = results_tables(results).items()
    sections = [_introduction(results), to_markdown(*main), _definitions(results)]
    for title, table in others:
        sections += [f"## {title}", to_markdown(*table)]
    sets = [row for row in main_rows(results) if row.get("views")]
    views = views_table(results)
    if views is not None:
        sections += ["## Views", to_markdown(*views), _VIEWS_CAPTION]

    curves = loss_curves(Metrics(workdir / "metrics.jsonl").read(), sets)
    if not curves:
        notes.append("loss curves skipped: metrics.jsonl holds no outer losses of these methods")
    else:
        try:
            content = figures.loss_picture(curves)
        except ImportError:
            notes.append(NO_PLOTS)
        except Exception as error:  # a picture is not worth losing a run
            notes.append(f"loss curves skipped: matplotlib raised {type(error).__name__}: {error}")
        else:
            write_bytes(folder / "loss.png", content)
            sections += ["## Outer loss", "![outer loss of every method against the outer step](loss.png)"]

    for method in dict.fromkeys(row["method"] for row in sets):
        try:
            sections += _method_section(workdir, folder, method, [row["seed"] for row in sets if row["method"] == method])
        except InputError as error:
            notes.append(f"pictures of {method} skipped: {error}")
    # Written last, so that every picture it shows exists.
    write_bytes(folder / "results.md", ("\n\n".join(sections) + "\n").encode())
    return notes


def loss_curves(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gather the outer losses of every method in `rows` from the lines of metrics.jsonl.

    Seeds may have run in several groups. Lines of seeds that are not in `rows` belong to an earlier run in the same folder.

    Returns:
        For every method the steps "t" that all its seeds have logged, and the losses "t S".
    """
    seeds_of: dict[str, list[int]] = {}
    for row in rows:
        seeds_of.setdefault(row["method"], []).append(row["seed"])
    found: dict[str, dict[int, dict[int, float]]] = {method: {} for method in seeds_of}
    for record in records:
        kind, _, rest = record["stage"].partition("/")
        method, _, label = rest.rpartition("/seeds_")
        if kind != "distill" or method not in found:
            continue
        seeds = record["seeds"] if "seeds" in record else [int(seed) for seed in label.split("_")]
        for seed, loss in zip(seeds, np.atleast_1d(record["loss"]).tolist(), strict=True):
            found[method].setdefault(record["step"], {})[seed] = loss
    curves = {}
    for method, losses in found.items():
        seeds = [seed for seed in seeds_of[method] if any(seed in of_step for of_step in losses.values())]
        steps = [step for step in sorted(losses) if seeds and all(seed in losses[step] for seed in seeds)]
        if steps:
            curves[method] = np.array(steps), np.array([[losses[step][seed] for seed in seeds] for step in steps])
    return curves


def read_results(file: Path) -> dict[str, Any]:
    """Return the content of results.json.

    Raises:
        InputError: there is no such file.
        StorageError: it is not what an evaluation writes.
    """
    if not file.is_file():
        raise InputError(f"no results.json in {file.parent}, expected a run's folder; evaluate first")
    try:
        results = json.loads(file.read_bytes())
        # Checks that everything they need is there.
        _ = results_tables(results), _introduction(results)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"{file} is not a results file ({reason}), expected what an evaluation writes; move it away") from error
    return results


def _introduction(results: Mapping[str, Any]) -> str:
    dataset, budget, width = results["dataset"], results["budget"], results["teacher"]["repr_width"]
    h, w, c = dataset["image_shape"]
    pair = f"pairs of an image and a representation ({h} × {w} × {c} + {width} = {h * w * c + width:,} each)"
    stored = f"- Budget: {budget['scalars']:,} numbers, those of {budget['num_pairs']:,} {pair}" if budget else ""
    students = dict.fromkeys(row["student"] for row in results["rows"] if row["student"])
    seeds = sorted({row["seed"] for row in results["rows"]})
    lines = [
        f"# {results['name']}",
        "",
        f"- Dataset: {dataset['name']}, images {h} × {w} × {c}, {dataset['num_classes']} classes, {dataset['split']} split",
        f"- Fingerprint of the dataset: `{dataset['fingerprint']}`",
        *([stored] if budget else []),
        *(f"- No {method}: {reason}" for method, reason in results.get("absent", {}).items()),
        f"- Student: {', '.join(students)}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        "",
        "## Results",
    ]
    return "\n".join(lines)


def _definitions(results: Mapping[str, Any]) -> str:
    split = results["dataset"]["split"]
    # Older files do not say which protocols they have.
    protocols = "; ".join(about["definition"] for about in results.get("protocols", {}).values()) or _PROTOCOLS
    has_accuracy = any("accuracy" in row for row in results["rows"])
    accuracy = "that of a student's own outputs, where its set has labels; " if has_accuracy else ""
    return (
        f"All are of a student pretrained on the distilled set alone and measured on the {split} split. repr_error is its mean squared "
        f"error in predicting the teacher's representations of the {split} images, divided by their variance (0 is perfect, 1 no better "
        f"than their mean). The others are accuracies in percent: {accuracy}{protocols}. Values are "
        "the mean over seeds ± the sample standard deviation; pairs are images × views, numbers "
        "stored counts all that is needed to rebuild the set, with its share of the budget, and seconds are those of distilling one seed."
    )


_PROTOCOLS = (
    "a linear probe on the frozen features fitted with all training labels; a linear probe fitted with a share of the training labels; the "
    "vote of the nearest neighbours in the student's representation; the whole network fine-tuned with all training labels"
)
_VIEWS_CAPTION = (
    "The teacher's shift is the mean squared change of its representation under a view, divided by the variance of its representations. "
    "A view's targets are stored, shared with view 0, or predicted by an approximation network, "
    "with its R² on the shifts that it replaces."
)


def _method_section(workdir: Path, folder: Path, method: str, seeds: Sequence[int]) -> list[str]:
    """Write the pictures of a method and return the paragraphs that show them."""
    paths = [workdir / "distilled" / method / f"seed_{seed}" for seed in seeds]
    path, seed = next(((path, seed) for path, seed in zip(paths, seeds, strict=True) if path.is_dir()), (paths[0], seeds[0]))
    distilled = load_distilled(path)
    normalization = (read_manifest(path) or {}).get("normalization")
    if normalization is None:
        raise InputError(f"the manifest in {path} has no normalization of the pixels")
    mean, std = normalization["mean"], normalization["std"]
    pictures = {"images": figures.images_picture(distilled, mean, std)}
    captions = {"images": _all_or_first(num_images(distilled), figures.MAX_IMAGES, "distilled images")}
    if distilled.images.bases is not None:
        shown = _all_or_first(len(distilled.images.bases), figures.MAX_BASES, "image bases")
        pictures["bases"] = figures.bases_picture(distilled.images.bases, distilled.layout.base_shape)
        captions["bases"] = f"{shown}, each stretched to its own range; mid-grey is 0"
    if len(distilled.layout.views) > 1:
        pictures["views"] = figures.views_picture(distilled, mean, std)
        captions["views"] = f"{_all_or_first(num_images(distilled), figures.MAX_ROWS, 'distilled images')}, one per row, under every view"
    paragraphs = [f"## {method}, seed {seed}"]
    for kind, picture in pictures.items():
        name = f"{method}-{kind}.png"
        write_bytes(folder / name, figures.png(picture))
        paragraphs += [f"{captions[kind]}:", f"![{captions[kind]}]({quote(name)})"]
    return paragraphs


def _all_or_first(count: int, most: int, what: str) -> str:
    return f"The {what}" if count <= most else f"The first {most} of {count:,} {what}"
