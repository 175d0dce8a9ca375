"""The cards of a Hub repository: what a distilled set or a teacher is, in the words of its manifest, and how to train on it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssdd_jax.errors import InputError
from ssdd_jax.io.hub import hub_library
from ssdd_jax.io.markdown import to_markdown

CARD = "README.md"


class Run(NamedTuple):
    """What the results of a run say about a set: its budget, and the scores of students that were trained on it, by what they are."""

    budget: str
    scores: Mapping[str, str]


NO_RUN = Run("", {})
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_TAGS = ["dataset-distillation", "self-supervised-learning", "ssdd-jax"]


def check_licence(licence: str | None) -> str:
    """Return a licence as the Hub spells it.

    Raises:
        InputError: none is given, or it cannot be one of the Hub's.
    """
    if licence is None or not _LICENCE.fullmatch(licence):
        given = "is missing" if licence is None else f"is {licence!r}"
        raise InputError(
            f"--licence {given}, expected that of the source images as the Hub spells it: cc-by-4.0, mit, other, unknown, ... "
            "(hf.co/docs/hub/repositories-licenses)"
        )
    return licence


def dataset_card(manifest: Mapping[str, Any], *, licence: str, parquet: str, repo: str, run: Run = NO_RUN) -> str:
    """Return the card of a distilled set.

    Args:
        manifest: of its export.
        licence: that of the source images, as the Hub spells it.
        parquet: the file that the Hub shows.
        repo: USER/NAME of the repository.
        run: what the results of its run say about it.
    """
    hub = hub_library("huggingface_hub", "a card")
    kind, views, protocol = manifest["target_kind"], manifest["views"], manifest["published_protocol"]
    rows = manifest["num_images"] * len(views)
    data = hub.DatasetCardData(
        license=licence,
        pretty_name=f"{manifest['dataset'] or 'images'}, distilled by {manifest['method'] or 'ssdd_jax'}",
        task_categories=["image-feature-extraction" if kind == "representation" else "image-classification"],
        size_categories=["n<1K" if rows < 1000 else "1K<n<10K" if rows < 10_000 else "10K<n<100K"],
        tags=_TAGS,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": parquet}]}],
    )
    normalization = manifest["normalization"]
    facts = {
        "source": manifest["dataset"],
        "method": manifest["method"],
        "seed": manifest["seed"],
        "images x views": f"{manifest['num_images']} x {len(views)}",
        "numbers stored": f"{manifest['stored_scalars']:,}",
        "budget of its run": run.budget,
        "layout": manifest["image_axes"].partition("m ")[2] + f", {manifest['colours']}",
        "outer steps": manifest["steps"],
        "teacher": (manifest["teacher"] or {}).get("net"),
        "mean of the pixels in [0, 1]": normalization["mean"],
        "their standard deviation": normalization["std"],
    }
    columns = {
        "image": "pixels, rounded and clipped: to look at; `distilled/` has what to train on",
        kind: manifest["targets"]["meaning"],
        **({} if kind == "representation" else {"label": "the class with the largest number"}),
        "view": "the view under which the image is seen",
        "index": "which image it is a view of",
    }
    code = {"USER/NAME": repo, "MEAN": str(normalization["mean"]), "STD": str(normalization["std"]), "TARGET": kind}
    fill = lambda text: re.sub("|".join(code), lambda found: code[found[0]], text)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {data.pretty_name}",
        "A small set of images that stands for a large one: a network trained from scratch on these pairs learns "
        + ("representations close to those of the teacher that made them." if kind == "representation" else "to classify the source."),
        to_markdown(["", ""], [[name, _text(value)] for name, value in facts.items() if value not in (None, "")]),
        *(["## Students trained on it", to_markdown(["score", "value"], list(run.scores.items()))] if run.scores else []),
        "## Columns",
        to_markdown(["column", "meaning"], [[f"`{name}`", meaning] for name, meaning in columns.items()]),
        "## Views",
        to_markdown(["view", "meaning"], [[f"`{view['name']}`", view["meaning"]] for view in views]),
        "## Training on it",
        f"Normalise evaluation images alike: `{manifest['normalize'].partition(':')[0]}`.",
        "In JAX:",
        fill(_CODE_JAX),
        "In PyTorch, without JAX:",
        fill(_CODE_TORCH),
        *(["The published protocol:", f"```json\n{json.dumps(protocol, indent=2)}\n```"] if protocol else []),
        f"Made with [ssdd_jax](https://pypi.org/project/ssdd-jax/). The licence is that of the source images: {licence}.",
    ]
    return "\n\n".join(sections) + "\n"


def teacher_card(manifest: Mapping[str, Any], licence: str) -> str:
    """Return the card of a teacher, given the manifest of its folder and the licence of the images that it was trained on."""
    hub = hub_library("huggingface_hub", "a card")
    data = hub.ModelCardData(license=licence, library_name="ssdd-jax", pipeline_tag="image-feature-extraction", tags=_TAGS)
    normalization = manifest["normalization"]
    facts = {key: _text(manifest[key]) for key in ("net", "widths", "dataset", "image_shape", "repr_width", "pretraining")}
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# A teacher of {manifest['dataset']}",
        "A self-supervised network, whose representations a distilled set stands for.",
        to_markdown(["", ""], [[name.replace("_", " "), value] for name, value in facts.items()]),
        f"`{TEACHER_WEIGHTS}` has PyTorch's names and layouts of the network. Its input is normalised, (pixel / 255 - mean) / std with "
        f"mean {_text(normalization['mean'])} and std {_text(normalization['std'])}; "
        "the targets of its distilled sets are (output - centre) / scale, with both numbers in `manifest.json`.",
        "As the teacher of a run:",
        f"```\npython -m ssdd_jax.main --config NAME --workdir DIR --config.teacher.net={manifest['net']} "
        f"--config.teacher.checkpoint={TEACHER_WEIGHTS}\n```",
        f"Made with [ssdd_jax](https://pypi.org/project/ssdd-jax/). The licence is that of the images: {licence}.",
    ]
    return "\n\n".join(sections) + "\n"


TEACHER_WEIGHTS = "teacher.safetensors"

_CODE_JAX = """```python
from ssdd_jax import expand, load_distilled

distilled = load_distilled("hf://USER/NAME")  # checked against its sha256
images, targets = expand(distilled)  # (views, m, H, W, C) normalised, (views, m, d)
```"""
_CODE_TORCH = """```python
import numpy as np
import torch
from datasets import load_dataset

rows = load_dataset("USER/NAME", split="train")
# Rounded to 8 bits: the exact numbers are in distilled/.
x = torch.tensor(np.stack([np.atleast_3d(np.asarray(image)) for image in rows["image"]])).permute(0, 3, 1, 2) / 255
x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
y = torch.tensor(rows["TARGET"])
```"""


def run_of(source: Path, manifest: Mapping[str, Any]) -> Run:
    """Return what the results of a set's run say about it, `NO_RUN` where there are none next to it."""
    file = source.resolve().parent.parent.parent / "results.json"
    try:
        results = json.loads(file.read_bytes())
        titles = {"repr_error": "repr_error"}
        titles |= {score: title for about in results["protocols"].values() for score, title in about["columns"].items()}
        rows = [r for r in results["rows"] if (r["method"], r["seed"]) == (manifest.get("method"), manifest.get("seed"))]
        several = len({(row["student"], row["dataset"]) for row in rows}) > 1
        scores = {
            titles[score] + (f", {row['student']} on {row['dataset']}" if several else ""): _score(score, row[score])
            for row in rows
            for score in titles
            if score in row
        }
        budget = results["budget"] and f"{results['budget']['num_pairs']:,} pairs = {results['budget']['scalars']:,} numbers"
        return Run(budget or "", scores)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # A set from elsewhere.
        return NO_RUN


def _score(name: str, value: float) -> str:
    return f"{value:.3f} of the variance of the teacher's representations" if name == "repr_error" else f"{100 * value:.1f} %"


def _text(value: Any) -> str:
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else f"{value:.5g}" if isinstance(value, float) else str(value)
