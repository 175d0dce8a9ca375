"""The stages of a run, in order: teacher, distill, evaluate, report. What is complete for the same settings is not done again."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.export import export_distilled
from ssdd_jax.io.files import locked, write_json
from ssdd_jax.io.loggers import LogFn, make_loggers
from ssdd_jax.io.manifest import MANIFEST, SUMS, damaged_files, read_manifest, seal
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.publish import push_to_hub
from ssdd_jax.io.published import refuse_published
from ssdd_jax.paths import default_cache
from ssdd_jax.progress import Display
from ssdd_jax.report import comparison_table, read_results, read_runs, results_tables, to_rich, write_comparison, write_report
from ssdd_jax.runtime import hosts
from ssdd_jax.runtime.compilation import use_cache
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.published import NOTHING_SAID, SetFacts
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.checks import check_batches, check_features, check_sizes
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import data_warnings, load_data
from ssdd_jax.stages.distill import distill
from ssdd_jax.stages.evaluate import evaluate
from ssdd_jax.stages.given import NOTHING_GIVEN, Given
from ssdd_jax.stages.nearest import find_nearest
from ssdd_jax.stages.provenance import FINGERPRINTS, check_changes
from ssdd_jax.stages.sets import Sets, complete_sets, named_sets, own_sets

# What a run writes, and whether it is a folder.
FILES = ("spec.json", "metrics.jsonl", "results.json")
CONTENTS = {**dict.fromkeys(("checkpoints", "distilled", "report", "teacher"), True), **dict.fromkeys((*FILES, SUMS), False)}


def run(
    spec: RunSpec,
    workdir: Path,
    task: str = "all",
    sets: Sequence[Path] = (),
    *,
    facts: SetFacts = NOTHING_SAID,
    accept_changes: bool = False,
    logger: LogFn | None = None,
) -> dict[str, Any]:
    """Run a task's stages in `workdir` and return the results, if the task has any.

    Args:
        spec: the settings.
        workdir: folder of the run.
        task: 'teacher', 'distill' (after the teacher), 'evaluate' (sets that are there already), or 'all'.
        sets: folders of distilled sets, or published files, to evaluate instead of the run's own.
        facts: what the published ones do not say.
        accept_changes: go on in a workdir that was begun with other settings; what they change is made again.
        logger: is called with every line of metrics, in addition to those that the settings name.

    Raises:
        InputError: a setting does not fit the data, or is another than those that the workdir was begun with; nothing has been
            computed then.
    """
    with opened(spec, workdir, task, Given(logger=logger)) as context:
        if task == "evaluate":
            named = named_sets(sets, spec, facts)
            own = own_sets(context) if named else complete_sets(context)
        record_settings(context, accept_changes)
        if task == "evaluate":
            return on_writer_only(lambda: _evaluate(context, own, named))
        # Methods ask for a teacher if they need one; its controls need one whatever the methods.
        wants_teacher = set(spec.evaluation.controls) - {"none"} or spec.evaluation.teacher_targets
        if task == "teacher" or (task == "all" and wants_teacher):
            _ = context.teacher
        if task == "teacher":
            return {}
        distill(context)
        if task == "distill":
            return {}
        return on_writer_only(lambda: _evaluate(context, complete_sets(context)))


@contextmanager
def opened(spec: RunSpec, workdir: Path, task: str, given: Given = NOTHING_GIVEN) -> Iterator[Context]:
    """Open a run's folder, for this process alone, with its data, loggers and display; seal it when its work is done.

    What cannot be had is refused before anything is computed or written.
    """
    if hosts.is_writer():
        workdir = prepare_workdir(workdir)
    with locked(workdir) if hosts.is_writer() else nullcontext(), hosts.sharing(workdir):
        display = given.display or Display(quiet=not hosts.is_writer())
        with closing(make_loggers(spec.chosen_loggers(), workdir, spec.name, json_ready(spec), given.logger, display.print)) as loggers:
            yield _context(spec, workdir, task, given, Metrics(workdir / "metrics.jsonl", loggers), display)
        if hosts.is_writer():
            seal_run(workdir)


def _context(spec: RunSpec, workdir: Path, task: str, given: Given, metrics: Metrics, display: Display) -> Context:
    off = use_cache(Path(spec.data.cache) if spec.data.cache else default_cache())
    if off:
        display.print(f"warning: {off}")
    if hosts.is_writer():
        check_sealed(workdir)
    # One process prepares the dataset, and then the others find it, unless their cache is another one.
    data = given.data or (load_data(spec.data, spec.evaluation.split, display) if hosts.is_writer() else None)
    hosts.wait_for_writer()
    data = data or load_data(spec.data, spec.evaluation.split, display)
    display.print(
        f"{data.name}: {len(data.train_images)} training images of {data.image_shape}, {len(data.eval_images)} for {spec.evaluation.split}"
    )
    for warning in data_warnings(spec.data, data) if given.data is None else ():
        display.print(f"warning: {warning}")
    context = Context(spec, data, workdir, metrics, display, given)
    # Evaluation takes the sets that are there, whatever would be distilled.
    methods = () if task == "evaluate" else spec.chosen_methods()
    check_sizes(spec, data, methods, context.width if given.teacher or spec.teacher.features else None)
    check_batches(spec)
    check_features(context, methods, task in ("all", "evaluate"))
    if hosts.is_writer():
        context.metrics.begin()
    _ = context.teacher_digest
    if task in ("all", "evaluate"):
        _ = context.targets
    return context


def record_settings(context: Context, accept_changes: bool = False) -> None:
    """Write what a run depends on into its folder; from here on its files change.

    Raises:
        InputError: the folder was begun with other settings, or another process of the run has others.
    """
    data, workdir, now = context.data, context.workdir, context.saving["about"]
    statistics = [data.mean.tolist(), data.std.tolist()]
    hosts.check_alike({**{name: now[name] for name in ("settings", "versions", *FINGERPRINTS)}, "image statistics": statistics})
    if hosts.is_writer():
        for line in check_changes(workdir / "spec.json", now, accept_changes):
            context.display.print(line)
        (workdir / SUMS).unlink(missing_ok=True)
        write_json(workdir / "spec.json", now)
    hosts.wait_for_writer()


def _evaluate(context: Context, own: Sets, named: Sets | None = None) -> dict[str, Any]:
    """Evaluate and report; return the results."""
    results = evaluate(context, own, named)
    find_nearest(context, own)
    return show_report(context.workdir, results, context.display)


def on_writer_only(fn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function returns; of several processes one alone calls it, the others wait and return nothing."""
    result = {}
    if hosts.is_writer():
        with hosts.alone():
            result = fn()
    hosts.wait_for_writer()
    return result


def show_report(workdir: Path, results: dict[str, Any], display: Display) -> dict[str, Any]:
    """Write the report, print its tables and return the results."""
    for note in write_report(workdir):
        display.print(note)
    for title, table in results_tables(results).items():
        display.print(to_rich(*table, title=title))
    display.print(f"report: {workdir / 'report' / 'results.md'}")
    return results


def report(workdir: Path) -> None:
    """Write the report of a finished run again."""
    check_sealed(workdir)
    show_report(workdir, read_results(workdir / "results.json"), Display())
    seal_run(workdir)


def compare(workdirs: Sequence[Path], folder: Path) -> None:
    """Write one report of several finished runs into a folder, and print its table."""
    for workdir in workdirs:
        check_sealed(workdir)
    runs, display = read_runs(workdirs), Display()
    for note in write_comparison(runs, folder):
        display.print(note)
    display.print(to_rich(*comparison_table(runs), title="Results"))
    display.print(f"report: {folder / 'results.md'}")


def export(workdir: Path, fmt: str, sets: Sequence[Path] = (), licence: str | None = None) -> list[Path]:
    """Export distilled sets, those in `workdir` if none is named, into workdir/export/FORMAT; `licence` is for `hf`.

    Raises:
        InputError: there is no set, or the format is unknown.
    """
    refuse_published(sets, "export")
    display, own = Display(), workdir / "distilled"
    folders = list(sets) or sorted(file.parent for file in own.rglob(MANIFEST))
    if not folders:
        raise InputError(f"no distilled set below {own}, expected those of a run; give its folder as --workdir, or a set's as --set")
    destinations: dict[Path, Path] = {}
    for folder in folders:
        manifest = read_manifest(folder) or {}
        name = [str(manifest["method"]), f"seed_{manifest['seed']}"] if {"method", "seed"} <= manifest.keys() else [folder.resolve().name]
        destination = workdir.joinpath("export", fmt, *name)
        if destination in destinations:
            raise InputError(f"--set {folder} would replace the export of {destinations[destination]}; export them into two workdirs")
        destinations[destination] = folder
    for destination, folder in destinations.items():
        display.print(f"exported {export_distilled(folder, destination, fmt, licence=licence)}")
        if note := (read_manifest(destination) or {}).get("evaluation"):
            display.print(f"  {note}")
    return list(destinations)


def push(workdir: Path, repo: str | None, licence: str | None, sets: Sequence[Path] = (), private: bool = False) -> str:
    """Send a distilled set, or the teacher in its folder, to the Hugging Face Hub, and return the repository's address.

    Raises:
        InputError: there is no set, or several and none is named; as for `push_to_hub`.
    """
    refuse_published(sets, "push")
    folders = list(sets) or sorted(file.parent for file in (workdir / "distilled").rglob(MANIFEST))
    if len(folders) != 1:
        found = f"{len(folders)} sets" if folders else "no distilled set"
        raise InputError(f"{found} in {workdir}, expected one to push; name its folder, or that of the teacher, with --set")
    address = push_to_hub(folders[0], repo, licence=licence, private=private)
    Display().print(f"pushed {folders[0]} to {address}")
    return address


def seal_run(workdir: Path) -> None:
    """Write the digests of the files of a run that has ended; sets, exports and checkpoints have their own."""
    files = [*(workdir / name for name in FILES), *sorted((workdir / "report").glob("*"))]
    seal(workdir, [str(file.relative_to(workdir)) for file in files if file.is_file()])


def check_sealed(workdir: Path) -> None:
    """Refuse to go on with files of an ended run that have changed since.

    Raises:
        DataError: one has; the message names all of them.
    """
    if (workdir / SUMS).is_file():
        changed = [name for name in damaged_files(workdir) if name in FILES and (workdir / name).is_file()]
        if changed:
            raise DataError(
                f"{', '.join(changed)} in {workdir} changed since the run ended; copy the folder again, "
                f"or remove {SUMS} there to go on with the files as they are"
            )


def prepare_workdir(workdir: Path) -> Path:
    """Return the run's folder, made if it is missing."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name, is_folder in CONTENTS.items():
            if (workdir / name).exists() and (workdir / name).is_dir() != is_folder:
                raise InputError(f"{workdir / name} is a {'file' if is_folder else 'folder'}, expected the run's own; move it away")
        # A folder that cannot be written is reported before anything is computed.
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        where = f" ({error.filename})" if error.filename and Path(error.filename) != workdir else ""
        raise InputError(f"--workdir {workdir}: {error.strerror}{where}; give a folder that can be written") from error
    return workdir
