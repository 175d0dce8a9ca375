"""What a report shows of a finished run, read from the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.core.distilled import DistilledSet
from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.report.tables import main_rows, results_tables

FINGERPRINT = "Fingerprint of the dataset"
_PROTOCOLS = (
    "a linear probe on the frozen features fitted with all training labels; a linear probe fitted with a share of the training labels; the "
    "vote of the nearest neighbours in the student's representation; the whole network fine-tuned with all training labels"
)
VIEWS_CAPTION = (
    "The teacher's shift is the mean squared change of its representation under a view, divided by the variance of its representations. "
    "A view's targets are stored, shared with view 0, or predicted by an approximation network, "
    "with its R² on the shifts that it replaces."
)


@dataclass(frozen=True)
class DrawnSet:
    """A distilled set of which there are pictures.

    Attributes:
        seed: of the set.
        distilled: the set.
        mean: of the pixels, by which they were normalised, one per channel.
        std: likewise.
        digest: sha256 of the file that it was read from; "" where the manifest says none.
    """

    seed: int
    distilled: DistilledSet
    mean: Sequence[float]
    std: Sequence[float]
    digest: str


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        label: what it is called next to others.
        workdir: its folder.
        results: content of results.json.
        curves: for every method the steps "t" and the outer losses "t S" of its S seeds.
        sets: the first seed of every method whose set is there, by method.
        notes: one line on each thing that is not.
    """

    label: str
    workdir: Path
    results: Mapping[str, Any]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    sets: Mapping[str, DrawnSet]
    notes: list[str] = field(default_factory=list)


def read_run(workdir: Path, label: str = "") -> Run:
    """Read a finished run.

    Args:
        workdir: holds results.json, and metrics.jsonl and distilled/ for curves and pictures.
        label: what to call it; its folder's name if empty.

    Raises:
        InputError: results.json is missing.
        StorageError: it is not what an evaluation writes.
    """
    results, notes = read_results(workdir / "results.json"), []
    rows = [row for row in main_rows(results) if row.get("views")]
    curves = loss_curves(Metrics(workdir / "metrics.jsonl").read(), rows)
    if not curves:
        notes.append("loss curves skipped: metrics.jsonl holds no outer losses of these methods")
    sets = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        try:
            sets[method] = _drawn_set(workdir, method, [row["seed"] for row in rows if row["method"] == method])
        except InputError as error:
            notes.append(f"pictures of {method} skipped: {error}")
    return Run(label or workdir.resolve().name, workdir, results, curves, sets, notes)


def _drawn_set(workdir: Path, method: str, seeds: Sequence[int]) -> DrawnSet:
    """Return the set of the first seed that is there.

    Raises:
        InputError: there is none, or it does not say how its pixels were normalised.
    """
    paths = [workdir / "distilled" / method / f"seed_{seed}" for seed in seeds]
    path, seed = next(((path, seed) for path, seed in zip(paths, seeds, strict=True) if path.is_dir()), (paths[0], seeds[0]))
    distilled, manifest = load_distilled(path), read_manifest(path) or {}
    if manifest.get("normalization") is None:
        raise InputError(f"the manifest in {path} has no normalization of the pixels")
    return DrawnSet(seed, distilled, manifest["normalization"]["mean"], manifest["normalization"]["std"], manifest.get("sha256", ""))


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
        _ = results_tables(results), facts(results)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"{file} is not a results file ({reason}), expected what an evaluation writes; move it away") from error
    return results


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a run is about, each thing with its name."""
    dataset, budget, width = results["dataset"], results["budget"], results["teacher"]["repr_width"]
    h, w, c = dataset["image_shape"]
    pair = f"pairs of an image and a representation ({h} × {w} × {c} + {width} = {h * w * c + width:,} each)"
    students = dict.fromkeys(row["student"] for row in results["rows"] if row["student"])
    seeds = sorted({row["seed"] for row in results["rows"]})
    return [
        ("Dataset", f"{dataset['name']}, images {h} × {w} × {c}, {dataset['num_classes']} classes, {dataset['split']} split"),
        (FINGERPRINT, dataset["fingerprint"]),
        *([("Budget", f"{budget['scalars']:,} numbers, those of {budget['num_pairs']:,} {pair}")] if budget else []),
        *((f"No {method}", reason) for method, reason in results.get("absent", {}).items()),
        ("Student", f"{', '.join(students)}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"),
    ]


def definitions(results: Mapping[str, Any]) -> str:
    """Return what the columns of a run's tables mean."""
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
