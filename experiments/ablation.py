"""What each choice is worth: python -m experiments.ablation QUESTION --data arrays:emoji.npz [--config arrays:paper] [--workdir DIR]

A question is a few rows that differ in one thing from the first of them, on the same teacher, the same seeds, the same split. The table
has the paired difference of every score to the first row, with its 95 % interval (Student's t). It goes on where it was cut off, and a
row that is added reruns nothing else. `--list` prints the questions. Choices are made on the validation split, unless --split says test.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

from scipy import stats

from experiments.paper.tables import SCORES, text_of, unit_of
from experiments.runs import call, key_of, share
from ssdd_jax.io.files import write_bytes
from ssdd_jax.report import to_markdown
from ssdd_jax.report.tables import NOTHING
from ssdd_jax.settings.presets import default_config, two_core_students

CONFIG = Path(__file__).with_name("ablation_config.py")


@dataclass(frozen=True)
class Line:
    """A row of a question.

    Attributes:
        like: the config's method that it is like.
        changes: settings of the method that differ.
        run: settings of the whole run that differ, by their dotted names.
    """

    like: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)


FLIP = {"views": ("identity", "hflip"), "view_targets": ("stored", "shared")}
CODED = {
    **{"base_size": 0, "frequencies": 256, "image_bases": 96, "repr_bases": 80},
    **{"factor_scale": "each", "bits": 4, "steps": 0},
}
_SMALL = default_config()
two_core_students(_SMALL)
NETS = {net: _SMALL.evaluation.students[net].to_dict() for net in ("convnet", "vgg11", "alexnet", "resnet18")}
IN_LOOP = {"view_targets": ("stored", "network", "network", "network")}
QUESTIONS: dict[str, tuple[str, dict[str, Line]]] = {
    "networks": (
        "When are the approximation networks trained, and how wide are they?",
        {
            "afterwards": Line("ours", IN_LOOP),
            "last third": Line("ours", {**IN_LOOP, "joint": 1 / 3}),
            "all steps": Line("ours", {**IN_LOOP, "joint": 1.0}),
            "all steps, h = 0": Line("ours", {**IN_LOOP, "joint": 1.0, "hidden": 0}),
            "all steps, h = 8": Line("ours", {**IN_LOOP, "joint": 1.0, "hidden": 8}),
        },
    ),
    "views": (
        "Which views, and where do their targets come from?",
        {
            "none": Line("basis"),
            "flip, shared": Line("basis", FLIP),
            "rotations, networks": Line("ours", {**IN_LOOP, "joint": 1.0}),
            "rotations, stored": Line("ours", {"view_targets": ("stored",) * 4}),
        },
    ),
    "bits": (
        "How many bits does a number need, and must the steps see the rounding?",
        {
            "32": Line("basis"),
            "8": Line("basis", {"bits": 8, "support_images": 128}),
            "8, rounded at the end": Line("basis", {"bits": 8, "support_images": 128, "rounding": "end"}),
            "4": Line("basis", {"bits": 4, "support_images": 128}),
            "4, rounded at the end": Line("basis", {"bits": 4, "support_images": 128, "rounding": "end"}),
        },
    ),
    "selection": (
        "Which images does a set start from?",
        {name: Line("basis", {"selection": name}) for name in ("random", "kmeans", "herding")},
    ),
    "steps": (
        "Is the loss still falling at the end?",
        {
            "as it is": Line("basis"),
            "3 times the steps": Line("basis", {"steps": 1200}),
            "half the rate": Line("basis", {"learning_rate": 0.01}),
            "twice the rate": Line("basis", {"learning_rate": 0.04}),
        },
    ),
    "loss": (
        "Which error of the predicted representations is minimized?",
        {name: Line("basis", {"loss": name}) for name in ("squared", "whitened", "centres")},
    ),
    "averaging": (
        "Is the mean of the set over the last steps better than the last one?",
        {str(share): Line("basis", {"averaged": share}) for share in (0.0, 0.25, 0.5)},
    ),
    "real": (
        "How do real images enter a step?",
        {
            name: Line("basis", run={"outer.real_augment": kind, **settings})
            for name, kind, settings in (
                ("as they are", "views", {}),
                ("flipped or not", "views", {"outer.real_views": ("identity", "hflip")}),
                ("8 crops, flipped", "crops", {}),
                ("fresh crops, flipped", "fresh", {}),
                ("as they are, 512 of them", "views", {"outer.batch_size": 512}),
            )
        },
    ),
    "sizes": (
        "How is the budget spent: on the resolution of the bases (side s), on their number U, on V, or on images?",
        {
            f"s = {side}, U = {image_bases}, V = {repr_bases}": Line(
                "basis", {"base_size": side, "frequencies": 0, "image_bases": image_bases, "repr_bases": repr_bases, "support_images": 128}
            )
            for side, image_bases, repr_bases in (
                (8, 96, 24),
                (8, 48, 24),
                (12, 48, 24),
                (16, 24, 24),
                (8, 96, 12),
                (8, 96, 48),
            )
        },
    ),
    "frequencies": (
        "Are bases kept as pixels or as their lowest frequencies, and have they one scale or one each?",
        {
            f"{kept}, {scale}": Line("basis", {**sizes, "repr_bases": 31, "factor_scale": scale, "learning_rate": 0.03})
            for kept, sizes in (
                ("12 x 12 pixels", {"base_size": 12, "frequencies": 0, "image_bases": 37}),
                ("192 frequencies", {"base_size": 0, "frequencies": 192, "image_bases": 48}),
            )
            for scale in ("balanced", "each")
        },
    ),
    "coded": (
        "What should a set of real images hold that takes no step: which images, which views, how exact targets?",
        {
            "random images, flip shared": Line("basis", {**CODED, **FLIP}),
            "random images": Line("basis", CODED),
            "k-means, flip shared": Line("basis", {**CODED, **FLIP, "selection": "kmeans"}),
            "k-means": Line("basis", {**CODED, "selection": "kmeans"}),
            "k-means, V = 0": Line("basis", {**CODED, "selection": "kmeans", "repr_bases": 0}),
            "k-means, U = 64, V = 0": Line("basis", {**CODED, "selection": "kmeans", "image_bases": 64, "repr_bases": 0}),
        },
    ),
    "members": (
        "How many members take part in a step?",
        {str(count): Line("basis", run={"pool.members_per_step": count}) for count in (1, 2, 4)},
    ),
    "architectures": (
        "Do members of several architectures make a set that others learn more from? Members of the pool, and the student:",
        {
            name: Line("basis", {"steps": steps}, {"pool.nets": {net: NETS[net] for net in nets}, "evaluation.only": ",".join(NETS)})
            for name, nets, steps in (
                ("convnet", ("convnet",), 400),
                ("convnet, vgg11, alexnet", ("convnet", "vgg11", "alexnet"), 400),
                ("convnet, vgg11, alexnet, 1,200 steps", ("convnet", "vgg11", "alexnet"), 1200),
                ("convnet, 1,200 steps", ("convnet",), 1200),
            )
        },
    ),
    "student": (
        "Does the student's training limit what a set can show?",
        {str(updates): Line("basis", run={"evaluation.updates": updates}) for updates in (300, 1500)},
    ),
}


def difference(values: Sequence[float], first: Sequence[float], score: str) -> str:
    """Return the mean of paired differences with its 95 % interval, in points of a percentage or as an error.

    Example:
        >>> difference([0.52, 0.54, 0.56], [0.50, 0.51, 0.55], "linear")
        '+2.0 ± 2.5'
    """
    pairs = [a - b for a, b in zip(values, first, strict=True)]
    scale, decimals = unit_of(score)
    mean = f"{scale * statistics.fmean(pairs):+.{decimals}f}"
    if len(pairs) < 2:
        return mean
    half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / sqrt(len(pairs))
    return f"{mean} ± {scale * half:.{decimals}f}"


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Return the table of a question: rows of results.json by the names of its lines, the first being what the others are compared with.

    Of several students each has its lines.
    """
    every = [row for found in rows.values() for row in found]
    scores = [score for score in SCORES if any(score in row for row in every)]
    students = list(dict.fromkeys(row["student"] for row in every))
    of = lambda name, student, score: {row["seed"]: row[score] for row in rows[name] if row["student"] == student and score in row}
    first, lines = next(iter(rows)), []
    for student, name in product(students, rows):
        found, cells = rows[name], []
        size = f"{found[0]['num_images']} x {found[0]['num_views']}" if found else NOTHING
        for score in scores:
            ours, theirs = of(name, student, score), of(first, student, score)
            seeds = sorted(set(ours) & set(theirs))
            text = text_of([ours[seed] for seed in sorted(ours)], score)
            paired = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], score) if seeds and name != first else ""
            cells.append(f"{text} ({paired})" if paired else text)
        lines.append([f"{name}; {student}" if len(students) > 1 else name, size, *cells])
    return ["", "images x views", *(SCORES[score] for score in scores)], lines


def groups(lines: Mapping[str, Line]) -> dict[str, dict[str, Line]]:
    """Return the lines that one run can have together, those with the same settings of the run."""
    found: dict[str, dict[str, Line]] = {}
    for name, line in lines.items():
        found.setdefault(key_of(dict(line.run)), {})[name] = line
    return found


def method_of(name: str) -> str:
    """Return the name of a line's method: letters, digits and underscores."""
    return "row_" + "".join(character if character.isalnum() else "_" for character in name)


def answer(question: str, options: argparse.Namespace) -> str:
    """Do what is left of a question's runs and return its table as Markdown."""
    asked, lines = QUESTIONS[question]
    rows: dict[str, list[Any]] = {}
    for key, together in groups(lines).items():
        workdir = options.workdir / question / key
        settings = {
            "base": options.config,
            "source": options.data,
            "split": options.split,
            "seeds": list(range(options.seeds)),
            "run": dict(next(iter(together.values())).run),
            "methods": {method_of(name): [line.like, dict(line.changes)] for name, line in together.items()},
            "smoke": options.smoke,
        }
        share(sorted(options.workdir.glob("*/*")), workdir)
        call(CONFIG, settings, options.workdir / "runs", workdir)
        found = json.loads((workdir / "results.json").read_text())["rows"]
        rows |= {name: [row for row in found if row["method"] == method_of(name)] for name in together}
    text = f"{asked} {options.data}, {options.split} split, {options.seeds} seed(s); in brackets the paired difference to the first line."
    return f"## {question}\n\n{text}\n\n{to_markdown(*table({name: rows[name] for name in lines}))}\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", choices=(*QUESTIONS, "all"), default="all")
    parser.add_argument("--data", default="")
    parser.add_argument("--config", default="arrays:paper")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5, metavar="COUNT")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--smoke", action="store_true", help="everything as small as can be; the numbers mean nothing")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(argv)
    chosen = tuple(QUESTIONS) if options.question == "all" else (options.question,)
    for question in chosen:
        if options.list:
            asked, lines = QUESTIONS[question]
            print(f"{question}: {asked} {'; '.join(lines)}")
            continue
        text = answer(question, options)
        write_bytes(options.workdir / f"{question}.md", text.encode())
        print(text)


if __name__ == "__main__":
    main()
