"""Every setting either changes the digest of what it affects, or is on a list of those that affect nothing that is kept."""

import json
import re
import typing
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.registry import METHODS, PROTOCOLS
from ssdd_jax.settings import digest as digests
from ssdd_jax.settings.evaluation import RECIPES, protocol_defaults
from ssdd_jax.settings.methods import DatmSpec, RegressionSpec
from ssdd_jax.settings.presets import AUTOMATIC
from ssdd_jax.settings.spec import DataSpec, EvaluationSpec, NetSpec, PoolSpec, RunSpec, TeacherSpec
from ssdd_jax.stages.cells import Cell, Scope, cell_digest
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.sets import StoredSet

# Names, places, what is logged or saved, which rows there are, how work is divided; and the online probe, which only observes.
NOTHING = re.compile(
    r"name|seeds|seeds_at_once|steps_per_dispatch|log_every|logger|only|checkpoints\..*|devices\..*|memory\..*|teacher\.probe_learning_rate"
    r"|evaluation\.(controls|only|teacher_targets)|(data|evaluation\.datasets\.\w+)\.(data_dir|cache|memory_gb)"
    # Data go by their content: these change nothing where all images are alike and can be used.
    r"|(data|evaluation\.datasets\.\w+)\.(fit|on_bad_image|ground|overlap)"
)
# What a change of these digests entails: the teacher of other data is another one, and so are its sets; rows have what they read.
EXPECTED = [
    (r"data\..*", {"data", "teacher", "set", "label set", "experts", "control"}),
    (r"teacher\..*", {"teacher", "set", "control"}),
    (r"methods\.datm\.experts\..*", {"experts", "label set"}),
    (r"methods\.datm\..*", {"label set"}),
    (r"(methods\.auto|trials)\..*", {"automatic set"}),
    (r"(num_pairs|student\..*|pool\..*|outer\..*|methods\.ours\..*)", {"set"}),
    (r"evaluation\.recipes\.(?P<kind>\w+)\..*", {"kind"}),
    (r"evaluation\.vit_recipe\..*", {"vit"}),
    (r"evaluation\.students\.vit\..*", {"vit"}),
    (r"evaluation\.students\.convnet\..*", {"control"}),
    (r"(evaluation\.datasets\..*)", {"other"}),
    (r"(evaluation\..*|protocols\..*)", {"control"}),
]
# Where the next value in range is none that differs or none that can be read here.
VALUES = {
    "data.source": "arrays:third.npz",
    "evaluation.datasets.other.source": "arrays:third.npz",
    "evaluation.datasets.other.split": "unlabelled",
    "data.split": "unlabelled",
    "teacher.features": "features.npy",
    "data.ground": "black",
    "evaluation.datasets.other.ground": "black",
    "data.size": 6,
    "data.channels": 3,
    "data.validation": 0.25,
    "data.limit": 40,
    "logger": "console",
    "only": "ours",
    "evaluation.only": "vit",
    "num_pairs": 11,
    "evaluation.epochs": None,
    "evaluation.protocols": ("linear", "knn"),
}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Settings of every kind: two students, another dataset, and a method with all that one can have."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(0)
    for name in ("mine", "second", "third"):
        images = {split: draw.randint(0, 256, (80, 8, 8, 1), np.uint8) for split in ("train", "test", "unlabelled")}
        arrays = {f"x_{split}": part for split, part in images.items()}
        np.savez(f"{name}.npz", **arrays, y_train=np.arange(80) % 4, y_test=np.arange(80) % 4)
    np.save("features.npy", draw.normal(size=(80, 6)).astype(np.float32))
    students = {"convnet": NetSpec(widths=(6,)), "vit": NetSpec("vit", (6,))}
    evaluation = EvaluationSpec(
        students=students, datasets={"other": DataSpec("arrays:second.npz")}, recipes=RECIPES, protocols=tuple(protocol_defaults())
    )
    data = DataSpec("arrays:mine.npz", validation=0.2)
    return RunSpec(
        data=data,
        evaluation=evaluation,
        methods={"ours": RegressionSpec(), "datm": DatmSpec(), "auto": AUTOMATIC},
        teacher=TeacherSpec(widths=(6,)),
        student=NetSpec(widths=(6,)),
        pool=PoolSpec(nets={"small": NetSpec(widths=(4,))}),
    )


def digests_of(spec, folder):
    """Return the digests of what a run makes, each of one thing that is kept."""
    data = load_data(spec.data, spec.evaluation.split)
    context = Context(spec, data, folder, Metrics(folder / "metrics.jsonl"), Display(quiet=True))
    sets = {}
    for kind in RECIPES:
        (folder / kind).mkdir(exist_ok=True)
        about = {"sha256": kind, "layout": {"target_kind": kind}}
        (folder / kind / "manifest.json").write_text(json.dumps(about))
        sets[kind] = {0: StoredSet(folder / kind)}
    scope, own, other = Scope(context, sets, spec.evaluation.controls), data.name, next(iter(list(context.targets)[1:]))
    cells = {kind: Cell(kind, "convnet", own, 0) for kind in RECIPES}
    cells |= {"control": Cell("full", "convnet", own, 0), "vit": Cell("full", "vit", own, 0), "other": Cell("full", "convnet", other, 0)}
    cells |= {"teacher row": Cell("teacher", None, own, 0), "untrained": Cell("none", "convnet", own, 0)}
    made = {"data": data.digest, "teacher": context.teacher_digest, "set": context.distilled_digest("ours")}
    made |= {
        "automatic set": context.distilled_digest("auto"),
        "label set": context.distilled_digest("datm"),
        "experts": context.experts_file(spec.methods["datm"].experts).name,
    }
    return made | {name: cell_digest(scope, cell) for name, cell in cells.items()}


def walk(spec, hint, prefix=""):
    """Yield the path, type and metadata of every setting, and its value."""
    hints = typing.get_type_hints(hint)
    for f in fields(spec):
        value, path = getattr(spec, f.name), f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from walk(value, type(value), f"{path}.")
        elif isinstance(value, typing.Mapping):
            for name, section in value.items():
                yield from walk(section, type(section), f"{path}.{name}.")
        else:
            yield path, hints[f.name], f.metadata, value


def another(path, hint, metadata, value):
    """Return another value of a setting."""
    if path in VALUES:
        return VALUES[path]
    if "choices" in metadata and not isinstance(value, tuple):
        return next((choice for choice in metadata["choices"] if choice != value), value)
    if path.endswith(".net"):
        return "convnet" if value == "vit" else "vit"
    if "registry" in metadata and isinstance(value, str):
        return next((name for name in metadata["registry"] if name != value), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        low, high = metadata.get("range", (0, 9))
        return value + 1 if value + 1 <= high else value / 2 if value else (low + high) / 2
    if isinstance(value, tuple):
        return tuple(value[:-1]) if len(value) > 1 else (*value, *value) if value else (3,)
    assert hint is str, f"give {path} another value in VALUES"
    return "another"


def put(spec, path, value):
    name, _, rest = path.partition(".")
    old = spec[name] if isinstance(spec, typing.Mapping) else getattr(spec, name)
    new = put(old, rest, value) if rest else value
    return {**spec, name: new} if isinstance(spec, typing.Mapping) else replace(spec, **{name: new})


# A single registered kernel has no other value, a file of weights is compared by its content, and a target has the shape of the data.
ONE_VALUE = re.compile(
    r"methods\.(ours|auto|datm)\.kind|methods\.(ours|auto)\.kernel|(teacher\.checkpoint|methods\.datm\.experts\.files)"
    r"|evaluation\.datasets\.other\.(size|channels)"
)


def test_every_setting_changes_the_digests_of_what_it_affects_or_is_known_to_affect_nothing(spec, tmp_path):
    before, seen = digests_of(spec, tmp_path), 0
    for path, hint, metadata, value in walk(spec, RunSpec):
        new = another(path, hint, metadata, value)
        if new is None or ONE_VALUE.fullmatch(path):
            continue
        assert new != value, f"{path}: give it another value in VALUES"
        changed = put(spec, path, new)
        if path in ("data.size", "data.channels"):
            changed = put(changed, f"evaluation.datasets.other.{path.removeprefix('data.')}", new)
        after = digests_of(changed, tmp_path)
        moved = {name for name in before if before[name] != after[name]}
        if NOTHING.fullmatch(path):
            assert not moved, path
        else:
            rule, expected = next((re.fullmatch(rule, path), expected) for rule, expected in EXPECTED if re.fullmatch(rule, path))
            expected = {rule["kind"] if name == "kind" else name for name in expected}
            assert expected <= moved, (path, expected - moved)
        seen += 1
    assert seen > 100


def test_other_code_has_other_digests(spec, tmp_path, monkeypatch):
    before, regression = digests_of(spec, tmp_path), METHODS["regression"]
    monkeypatch.setitem(METHODS._objects, "regression", regression._replace(choice_version=99))
    assert {name for name, old in digests_of(spec, tmp_path).items() if old != before[name]} == {"automatic set"}
    monkeypatch.setitem(METHODS._objects, "regression", regression._replace(version=99))
    assert {name for name, old in digests_of(spec, tmp_path).items() if old != before[name]} == {"set", "automatic set"}
    monkeypatch.setitem(PROTOCOLS._objects, "knn", PROTOCOLS["knn"]._replace(version=99))
    moved = {name for name, old in digests_of(spec, tmp_path).items() if old != before[name]}
    assert moved == set(before) - {"data", "teacher", "label set", "experts"}
    # Sets whose images are brought to the data's statistics, which was not done once.
    with monkeypatch.context() as patch:
        unchanged = digests_of(spec, tmp_path)
        patch.setattr(StoredSet, "is_converted", lambda *_: True)
        assert {name for name, old in digests_of(spec, tmp_path).items() if old != unchanged[name]} == set(RECIPES)
    monkeypatch.setattr(digests, "FORMAT", 99)
    assert all(old != before[name] for name, old in digests_of(spec, tmp_path).items())
