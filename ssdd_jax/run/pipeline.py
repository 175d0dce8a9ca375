"""The stages of a run, in order: teacher, distill, evaluate, report. What is complete for the same settings is not done again."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import ssdd_jax
from ssdd_jax.core.distilled import budget_scalars
from ssdd_jax.errors import InputError
from ssdd_jax.io.artifacts import read_manifest
from ssdd_jax.io.files import write_json
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.report import results_table, summarize, to_rich, write_report
from ssdd_jax.run.build import as_dict, load_data, plan_method, repr_width, student_learner, teacher_learner
from ssdd_jax.run.context import Context
from ssdd_jax.run.distill import Distiller
from ssdd_jax.run.evaluate import REFERENCES, Evaluator
from ssdd_jax.run.loop import seed_groups
from ssdd_jax.run.progress import Display
from ssdd_jax.run.spec import RunSpec, digest, json_ready
from ssdd_jax.run.teacher import train_teacher

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(spec: RunSpec, workdir: Path) -> dict[str, Any]:
    """Run all stages in `workdir` and return the results.

    Raises:
        InputError: a setting does not fit the data; nothing has been computed then.
    """
    display = Display()
    workdir = prepare_workdir(workdir)
    data = load_data(spec.data, spec.evaluation.split)
    display.print(
        f"{data.name}: {len(data.train_images)} training images of {data.image_shape}, {len(data.eval_images)} for {spec.evaluation.split}"
    )
    check_sizes(spec, data.image_shape)
    write_json(workdir / "spec.json", provenance(spec, data.fingerprint))
    metrics = Metrics(workdir / "metrics.jsonl")

    teacher = train_teacher(spec, data, workdir / "checkpoints", metrics, display)
    context = Context(spec, data, teacher, workdir, metrics, display)
    methods = spec.chosen_methods()
    plans = {name: context.plan(name) for name in methods}
    budget = budget_scalars(spec.num_pairs, data.image_shape, repr_width(spec.teacher))
    display.print(f"budget: {spec.num_pairs} pairs = {budget} numbers")
    for name, plan in plans.items():
        kinds = ", ".join(f"{view} {kind}" for view, kind in zip(plan.layout.views, plan.layout.target_kinds, strict=True))
        display.print(f"  {name}: {plan.num_images} images, {plan.stored_scalars} numbers; targets: {kinds}")
    groups = seed_groups(spec.seeds, spec.seeds_at_once)
    for name in methods:
        distiller = Distiller(context, name)
        for group in groups:
            distiller.distill(group)

    results = evaluate(context, plans, budget, groups)
    for note in write_report(workdir):
        display.print(note)
    display.print(to_rich(*results_table(results)))
    display.print(f"report: {workdir / 'report' / 'results.md'}")
    return results


def evaluate(context: Context, plans: dict[str, Any], budget: int, groups: list[tuple[int, ...]]) -> dict[str, Any]:
    """Evaluate what results.json does not hold yet, writing it after every group, and return it.

    Rows of methods that `config.only` leaves out stay as long as they are of the same settings.
    """
    spec, file = context.spec, context.workdir / "results.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    evaluator = Evaluator(context)
    known = {row["digest"]: row for row in old.get("rows", [])}
    references = old.get("references", {}) if old.get("reference_digest") == digest(evaluator.digest, spec.seeds) else {}
    # What is known already stays in the file from the first write on.
    cells = {}
    for name in spec.methods:
        for seed in spec.seeds:
            row = known.get(row_digest(context, evaluator, name, seed))
            if row is not None:
                cells[name, seed] = row

    def write() -> dict[str, Any]:
        rows = [cells[cell] for cell in ((name, seed) for name in spec.methods for seed in spec.seeds) if cell in cells]
        results = {
            "name": spec.name,
            "dataset": {
                "name": context.data.name,
                "fingerprint": context.data.fingerprint,
                "image_shape": list(context.data.image_shape),
                "num_classes": context.data.num_classes,
                "split": spec.evaluation.split,
            },
            "budget": {"num_pairs": spec.num_pairs, "scalars": budget},
            "teacher": {"repr_width": context.width, "shifts": context.shifts},
            "plans": {name: as_dict(plan) for name, plan in plans.items()},
            "references": references,
            "reference_digest": digest(evaluator.digest, spec.seeds),
            "rows": rows,
            "summary": summarize(rows),
        }
        write_json(file, results)
        return results

    for name in REFERENCES:
        if name not in references:
            groups_of = [evaluator.reference(name, group) for group in groups]
            references[name] = {key: [value for part in groups_of for value in part[key]] for key in groups_of[0]}
    for name in plans:
        for group in groups:
            if not all((name, seed) in cells for seed in group):
                for row in evaluator.evaluate(name, group):
                    cells[name, row["seed"]] = {**row, "digest": row_digest(context, evaluator, name, row["seed"])}
                write()
    return write()


def row_digest(context: Context, evaluator: Evaluator, name: str, seed: int) -> str:
    """Return the name of one cell of the table: the set it is of and how it is evaluated."""
    manifest = read_manifest(context.distilled_folder(name, seed)) or {}
    return digest(evaluator.digest, context.distilled_digest(name), manifest.get("sha256"), name, seed)


def check_sizes(spec: RunSpec, image_shape: tuple[int, int, int]) -> None:
    """Refuse, before anything runs, what cannot be built whatever the teacher turns out to be."""
    teacher_learner(spec.teacher, image_shape)
    student_learner(spec.student, image_shape, repr_width(spec.teacher))
    for name in spec.chosen_methods():
        method = spec.methods[name]
        try:
            if method.factor_scale != "balanced":
                float(method.factor_scale)
        except ValueError:
            raise InputError(f"config.methods.{name}.factor_scale is {method.factor_scale!r}, expected 'balanced' or a number") from None
        plan_method(name, method, spec.num_pairs, image_shape, repr_width(spec.teacher), dict.fromkeys(method.views, 0.0))


def prepare_workdir(workdir: Path) -> Path:
    """Make the folder of the run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: {error.strerror}, expected a folder that can be written; give another") from error
    return workdir


def provenance(spec: RunSpec, fingerprint: str) -> dict[str, Any]:
    """Return what the results depend on: settings, versions, data and the device."""
    return {
        "settings": json_ready(spec),
        "data_fingerprint": fingerprint,
        "versions": {
            "ssdd_jax": ssdd_jax.__version__,
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in VERSIONED},
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
