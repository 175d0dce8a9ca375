"""Whole runs on arrays: teacher, distillation and evaluation as one call each, by the stages that the command line runs.

Images are uint8 pixels "n H W C", which are normalised by their own mean and standard deviation per channel as in a run, or floats of
that shape, which the caller has normalised and which stay as they are. NumPy's and jax's arrays are taken alike.

Without `workdir` nothing is kept but what is returned. With one, a folder of its own for every call, the same call goes on where it was
interrupted, and the set lies there with its manifest, as the command line writes it.

Any further keyword is a setting: of the method (`steps`, `learning_rate`, `image_bases`, ...), or a section or a value of the run
(`outer={"batch_size": 64}`, `student={"widths": (16, 32)}`, `log_every=10`), with the names, defaults and ranges of the configs.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdd_jax.errors import InputError, nearest
from ssdd_jax.registry import METHODS, NETS
from ssdd_jax.settings.spec import EvaluationSpec, NetSpec, RunSpec, TeacherSpec

if TYPE_CHECKING:
    from ssdd_jax.core.distilled import DistilledSet
    from ssdd_jax.stages.context import Context
    from ssdd_jax.stages.teacher import Teacher

CONTROLS = ("none", "full", "teacher")
Callback = Callable[[int, dict[str, float]], Any]
"""Is called after every step with its number and its metrics, such as the loss."""


def list_methods() -> tuple[str, ...]:
    """Return the methods that `distill` knows by name, those of the results tables first.

    Example:
        >>> "ours" in list_methods()
        True
    """
    from ssdd_jax.settings.presets import NAMED

    return (*NAMED, *(name for name in METHODS if name != "regression"))


def list_students() -> tuple[str, ...]:
    """Return the networks that a student, a member of the pool or a teacher can be.

    Example:
        >>> "resnet18" in list_students()
        True
    """
    return tuple(NETS)


def distill(
    images: Any,
    teacher: Any = None,
    *,
    labels: Any = None,
    method: Any = "ours",
    num_pairs: int = 10,
    seed: int = 0,
    callback: Callback | None = None,
    progress: bool = True,
    workdir: str | Path | None = None,
    **settings: Any,
) -> "DistilledSet":
    """Distil images into a set, and return it.

    An interrupt (Ctrl-C, a notebook's stop button) while the set is being optimised, or a KeyboardInterrupt from the callback, ends the
    optimisation, and what it has got to is returned.

    Args:
        images: training images "n H W C", uint8 or normalised floats.
        teacher: what represents them, one of:
            representations "n d" of the images; views of them are asked for by name where a method has views, and are given as a mapping
            such as {"identity": ..., "rot90": ...};
            a function of normalised images "b H W C" that returns "b d", of jax, or of NumPy arrays, such as a PyTorch module's;
            what `pretrain_teacher` returned;
            a path: .npy, .npz or a folder of features (see `ssdd_jax.stages.features`), otherwise a checkpoint;
            a mapping of `TeacherSpec` settings, such as {"net": "resnet18", "widths": (), "checkpoint": FILE};
            None to pretrain one.
        labels: integers "n" from 0, for methods that need them.
        method: among `list_methods()`, or the settings of one, such as `RegressionSpec(steps=100)`.
        num_pairs: N; the set stores at most N (H W C + d) numbers.
        seed: seed of the choice of images, of the batches and of the pool.
        callback: is called with (step, metrics) after every step.
        progress: whether to print lines and a bar.
        workdir: folder that keeps the run; None keeps nothing.
        settings: see this file's beginning.

    Returns:
        The distilled set; `ssdd_jax.expand` gives its pairs, images normalised as above.

    Raises:
        InputError: an argument cannot be used; nothing has been computed then.
        KeyboardInterrupt: it came before there was a set.

    Example:
        >>> distilled = distill(images, reprs, method="krr_st", num_pairs=20, steps=200)  # doctest: +SKIP
    """
    from ssdd_jax.io.artifacts import load_distilled
    from ssdd_jax.stages.distill import distill as stage

    name, method_spec = _method(method)
    spec = _run_spec({**settings, "num_pairs": num_pairs, "seeds": (seed,)}, {name: method_spec}, teacher)
    with _opened(spec, "distill", teacher, progress, callback, workdir, data=(images, labels)) as context:
        stage(context)
        return load_distilled(context.distilled_folder(name, seed))


def pretrain_teacher(
    images: Any,
    *,
    labels: Any = None,
    seed: int = 0,
    callback: Callback | None = None,
    progress: bool = True,
    workdir: str | Path | None = None,
    **settings: Any,
) -> "Teacher":
    """Pretrain a teacher with Barlow Twins, or read a published one, and return it.

    An interrupt ends the pretraining, and what it has got to is returned.

    Args:
        images: training images "n H W C", uint8; floats only where `checkpoint` is given, since they are augmented as pixels.
        labels: integers "n" from 0; the metrics then say how well a linear probe reads them. They never reach the teacher.
        seed: seed of its initialisation and its batches.
        callback: is called with (step, metrics) after every step.
        progress: whether to print lines and a bar.
        workdir: folder that keeps the run; None keeps nothing.
        settings: fields of `TeacherSpec` (`net`, `widths`, `steps`, `checkpoint`, ...), or see this file's beginning.

    Returns:
        The teacher, which `distill` and `evaluate` take; `teacher.jitted()` maps normalised images "n H W C" to representations "n d".

    Example:
        >>> teacher = pretrain_teacher(images, net="resnet18", widths=(), checkpoint="resnet18.pt")  # doctest: +SKIP
    """
    from ssdd_jax.runtime import stop
    from ssdd_jax.runtime.loop import unstack
    from ssdd_jax.stages.networks import teacher_learner
    from ssdd_jax.stages.teacher import freeze

    mine = {f.name for f in fields(TeacherSpec)}
    section = {**{key: value for key, value in settings.items() if key in mine}, "seed": seed}
    spec = _run_spec({key: value for key, value in settings.items() if key not in mine}, {}, section, also=mine)
    with _opened(spec, "teacher", section, progress, callback, workdir, data=(images, labels)) as context:
        try:
            return context.teacher
        except stop.Stopped as stopped:
            if stopped.state is None:
                raise
            context.display.print(f"warning: teacher: stopped after {stopped.step} steps; this is what they have made")
            learner = teacher_learner(spec.teacher, context.data.image_shape)
            name = f"{context.teacher_digest}, stopped after {stopped.step} steps"
            return freeze(spec, context.data, learner, unstack(stopped.state)[0].encoder, name)


def evaluate(
    distilled: Any,
    images: Any,
    labels: Any = None,
    *,
    eval_images: Any,
    eval_labels: Any = None,
    teacher: Any = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Pretrain a student on a distilled set, and return what the protocols read from it.

    Args:
        distilled: the set, or the name of a control: 'none' (an untrained student), 'full' (a student pretrained on all images), 'teacher'.
        images: training images "n H W C", as they were distilled.
        labels: integers "n" from 0; without any, the error in predicting the teacher's representation is all that is measured.
        eval_images: images that students are evaluated on, of the same kind.
        eval_labels: their labels.
        teacher: as for `distill`, the one that the set was made with; a mapping of representations also has those of `eval_images`, as
            `test`. Without one there is no `repr_error`.
        seed: seed of the student.
        progress: whether to print lines and a bar.
        settings: `student="resnet18"`, `protocols=("knn",)`, `updates=300` and other fields of `EvaluationSpec`, or see this file's
            beginning.

    Returns:
        A row as in results.json: `repr_error`, `linear`, `knn` and so on, accuracies as shares.

    Example:
        >>> scores = evaluate(distilled, x, y, eval_images=x_test, eval_labels=y_test, teacher=teacher)  # doctest: +SKIP
    """
    from ssdd_jax.io.artifacts import save_distilled
    from ssdd_jax.stages.evaluate import evaluate as stage
    from ssdd_jax.stages.sets import named_sets

    is_control = isinstance(distilled, str)
    if is_control and distilled not in CONTROLS:
        raise InputError(f"evaluate: {distilled!r} is not a control, expected {', '.join(CONTROLS)}, or a distilled set")
    is_there = teacher is not None and (not _is_settings(teacher) or {"checkpoint", "features"} & set(teacher))
    if (teacher is not None or (is_control and distilled != "none")) and not is_there:
        raise InputError(f"evaluate: teacher is {teacher!r}, expected one that is there; give what pretrain_teacher returns")
    mine = {f.name for f in fields(EvaluationSpec)}
    section = {**{key: value for key, value in settings.items() if key in mine}, "controls": (distilled,) if is_control else ()}
    others = {key: value for key, value in settings.items() if key not in mine}
    spec = _run_spec({**others, "seeds": (seed,), "evaluation": section}, {}, teacher, also=mine)
    with _opened(spec, "evaluate", teacher, progress, None, None, data=(images, labels, eval_images, eval_labels)) as context:
        named = {}
        if not is_control:
            folder, data = context.workdir / "set", context.data
            about = {"mean": data.mean.tolist(), "std": data.std.tolist()}
            save_distilled(folder, distilled, method="set", normalization=about, teacher={"digest": context.teacher_digest})
            named = named_sets([folder], spec)
        rows = stage(context, {}, named)["rows"]
        return {key: value for key, value in rows[0].items() if key != "digest"}


def _method(method: Any) -> tuple[str, Any]:
    """Return the name and the settings of a method."""
    from ssdd_jax.settings.presets import NAMED

    if is_dataclass(method) and getattr(method, "kind", None) in METHODS:
        return method.kind, method  # pyright: ignore[reportAttributeAccessIssue]
    name, known = str(method), list_methods()
    if name not in known:
        raise InputError(f"method is {method!r}, expected one of {', '.join(known)}, or its settings{nearest(name, known)}")
    return name, NAMED[name] if name in NAMED else METHODS.spec(name)()


def _run_spec(settings: Mapping[str, Any], methods: Mapping[str, Any], teacher: Any, also: set[str] | None = None) -> RunSpec:
    """Return the settings of a run: the defaults, changed by keywords; `also` are keywords of the caller's own, for messages."""
    from ssdd_jax.settings.digest import json_ready
    from ssdd_jax.settings.parse import to_spec

    name, method = next(iter(methods.items()), ("", None))
    of_method = {f.name for f in fields(method)} if method is not None else set()
    known = {f.name for f in fields(RunSpec)} - {"methods", "protocols", "data", "teacher", "seeds", "only"}
    values = json_ready(RunSpec(methods=methods), tuples=True)
    if _is_settings(teacher):
        values["teacher"] |= json_ready(dict(teacher or {}), tuples=True)
    elif isinstance(teacher, str | Path):
        is_features = Path(teacher).suffix in (".npy", ".npz") or Path(teacher).is_dir()
        values["teacher"]["features" if is_features else "checkpoint"] = str(teacher)
    for key, value in settings.items():
        if key in of_method:
            values["methods"][name][key] = value
        elif key == "student" and isinstance(value, str):
            values[key] = json_ready(NetSpec(value), tuples=True)
        elif key not in known | {"seeds", "protocols"}:
            names = sorted(known | of_method | (also or set()))
            raise InputError(f"the setting {key!r} is unknown, expected one of {', '.join(names)}{nearest(key, names)}")
        else:
            values[key] = _merged(values[key], value)
    return to_spec(values)


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _is_settings(teacher: Any) -> bool:
    return teacher is None or (isinstance(teacher, Mapping) and set(teacher) <= {f.name for f in fields(TeacherSpec)})


@contextmanager
def _opened(
    spec: RunSpec,
    task: str,
    teacher: Any,
    progress: bool,
    callback: Callback | None,
    workdir: str | Path | None,
    data: tuple[Any, ...],
) -> Iterator["Context"]:
    """Open a run on arrays, in a temporary folder if none is given; an interrupt ends its loops, and an error of the callback comes out."""
    from ssdd_jax.paths import local_path
    from ssdd_jax.progress import Display
    from ssdd_jax.runtime import stop
    from ssdd_jax.stages.given import Given, check_given, data_of_arrays, given_teacher
    from ssdd_jax.stages.pipeline import opened, record_settings

    if callback is not None:
        spec = replace(spec, log_every=1)
    arrays = data_of_arrays(*data)
    calls = _Calls("distill/*" if task == "distill" else task, callback, stop.request)
    with stop.on_interrupt(), tempfile.TemporaryDirectory(prefix="ssdd_jax-") as temporary:
        folder = Path(temporary) if workdir is None else local_path(workdir, "workdir")
        found = None if _is_settings(teacher) or isinstance(teacher, str | Path) else given_teacher(spec, arrays, teacher)
        check_given(spec, arrays, found, task)
        given = Given(arrays, found, calls if callback else None, Display(quiet=not progress), partial=True)
        try:
            with opened(spec, folder, task, given) as context:
                record_settings(context)
                yield context
        except stop.Stopped as stopped:
            raise calls.error or KeyboardInterrupt(str(stopped)) from None
        if calls.error is not None:
            raise calls.error


class _Calls:
    """The callback as a logger of a run: its errors stop the run and are kept, where those of other loggers are only reported."""

    def __init__(self, stages: str, callback: Callback | None, request: Callable[[], None]):
        self.stages, self.callback, self.request, self.error = stages, callback, request, None

    def __call__(self, stage: str, step: int, values: dict[str, Any]) -> None:
        if self.error is not None or self.callback is None or not fnmatch(stage, self.stages):
            return
        first = lambda value: value[0] if isinstance(value, list) else value
        try:
            self.callback(step, {key: first(value) for key, value in values.items() if key != "seeds"})
        except KeyboardInterrupt:
            self.request()
        except Exception as error:
            self.error = error
            self.request()
