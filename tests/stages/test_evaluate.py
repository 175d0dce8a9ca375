"""The evaluation stage on its own: several students and datasets, foreign sets, resumption, controls."""

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
from quick import QUICK_TEACHER, VIEWS

from ssdd_jax.cli import parse
from ssdd_jax.errors import InputError
from ssdd_jax.evals.protocol import Protocol
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.main import main
from ssdd_jax.progress import Display
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.evaluation import KnnSpec, RecipeSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke, to_config
from ssdd_jax.settings.spec import DataSpec, NetSpec
from ssdd_jax.stages import evaluate, pipeline
from ssdd_jax.stages.cells import Cell, Scope, cell_digest, cells
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.sets import named_sets, own_sets


def make_spec(sections=None, **evaluation):
    config = default_config()
    config.data.source = "digits"
    smoke(config)
    config.only = "krr_st"
    for view, values in VIEWS.items():
        config.teacher[view].update(values)
    config.evaluation.update(**{"protocols": ("knn",), **evaluation})
    config.protocols.few.fractions = (0.05,)
    config.protocols.update(sections or {})
    return to_spec(config)


CROSS = dict(
    students=to_config({"convnet": NetSpec(widths=(8,)), "vit": NetSpec("vit", (6,)), "wide": NetSpec(widths=(8,), width_factor=2.0)}),
    datasets={"again": to_config(DataSpec(limit=256, validation=0.2))},
    only="convnet,wide",
    controls=("none", "teacher_init", "teacher", "full"),
    protocols=("linear", "knn", "finetune"),
)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A workdir with a teacher and one distilled set."""
    workdir = tmp_path_factory.mktemp("cross")
    pipeline.run(make_spec(**CROSS), workdir, "distill")
    return workdir


@pytest.fixture
def workdir(distilled, tmp_path):
    return shutil.copytree(distilled, tmp_path / "run")


def cells_in(results):
    return [(row["method"], row["student"], row["dataset"], row["seed"]) for row in results["rows"]]


def test_every_cell_has_a_row_and_a_run_that_was_cut_off_computes_only_the_rest(workdir, monkeypatch):
    evaluated, run_cells = [], evaluate.evaluate_group

    def cut_off(scope, compiled, group):
        for cell, row in zip(group, run_cells(scope, compiled, group), strict=True):
            if len(evaluated) == 7:
                raise KeyboardInterrupt
            evaluated.append(cell)
            yield row

    spec = make_spec(**CROSS)
    monkeypatch.setattr(evaluate, "evaluate_group", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(spec, workdir, "evaluate")
    first = json.loads((workdir / "results.json").read_text())
    # Cut off between the two datasets of one student: its first row is kept.
    assert len(first["rows"]) == len(evaluated) == 7
    done, later = set(evaluated), []
    monkeypatch.setattr(evaluate, "evaluate_group", lambda *args: later.extend(args[-1]) or run_cells(*args))
    results = pipeline.run(spec, workdir, "evaluate")
    assert not done & set(later)
    assert results["rows"][:7] == first["rows"]
    teachers = [(name, None, data, 0) for name in ("teacher_init", "teacher") for data in ("digits", "again")]
    students = [
        (name, student, data, 0) for student in ("convnet", "wide") for name in ("none", "full", "krr_st") for data in ("digits", "again")
    ]
    assert cells_in(results) == teachers + students
    for row in results["rows"]:
        assert {"linear", "knn"} <= set(row)
        assert ("finetune" in row) == (row["student"] is not None)
        # The error is told for sets of this teacher, on their own dataset.
        assert ("repr_error" in row) == (row["method"] in ("full", "krr_st") and row["dataset"] == "digits")
        assert row["split"] == "test"
    tables = (workdir / "report" / "results.md").read_text()
    assert "## Students: linear probe" in tables
    assert "## Datasets: fine-tuned" in tables


def test_other_settings_make_other_cells_and_going_back_computes_nothing(workdir, monkeypatch):
    small = CROSS | {"controls": ("none",), "datasets": {}, "protocols": ("knn",), "only": "convnet"}
    first = pipeline.run(make_spec(**small), workdir, "evaluate")
    changed = pipeline.run(make_spec(**small | {"updates": 6}), workdir, "evaluate")
    assert len(changed["rows"]) == 2
    # The untrained student is the same, so its row is too.
    assert changed["rows"][0] == first["rows"][0]
    assert changed["earlier"] == first["rows"][1:]
    monkeypatch.setattr(evaluate, "evaluate_group", None)
    again = pipeline.run(make_spec(**small), workdir, "evaluate")
    assert (again["rows"], again["earlier"]) == (first["rows"], changed["rows"][1:])


def test_only_leaves_out_students_but_keeps_their_rows(workdir):
    small = CROSS | {"controls": ("none",), "datasets": {}, "protocols": ("knn",)}
    assert cells_in(pipeline.run(make_spec(**small | {"only": "wide"}), workdir, "evaluate")) == [
        ("none", "wide", "digits", 0),
        ("krr_st", "wide", "digits", 0),
    ]
    both = cells_in(pipeline.run(make_spec(**small | {"only": "convnet"}), workdir, "evaluate"))
    assert both == [(name, student, "digits", 0) for student in ("convnet", "wide") for name in ("none", "krr_st")]


def test_another_folder_evaluates_a_set_an_export_and_plain_arrays(workdir, tmp_path):
    exported = pipeline.export(workdir, "npz")
    assert exported == [workdir / "export" / "npz" / "krr_st" / "seed_0"]
    draw = np.random.RandomState(0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    np.save(foreign / "images.npy", draw.normal(size=(9, 8, 8, 1)).astype(np.float32))
    np.save(foreign / "targets.npy", draw.normal(size=(9, 3)).astype(np.float32))
    (foreign / "manifest.json").write_text(json.dumps({"kind": "pairs", "name": "foreign", "normalization": {"mean": [0.3], "std": [0.4]}}))
    sets = [workdir / "distilled" / "krr_st" / "seed_0", exported[0], foreign]
    spec = make_spec()
    results = pipeline.run(spec, tmp_path / "elsewhere", "evaluate", sets)
    # No teacher is there, so only what needs none is told.
    assert [row["method"] for row in results["rows"]] == ["none", "krr_st-0", str(exported[0]), "foreign"]
    assert not any("repr_error" in row for row in results["rows"])
    plain, export = results["rows"][1:3]
    assert plain["knn"] == export["knn"]
    assert results["budget"] is None
    # In the workdir of its teacher the same set has its error, beside that of the run itself.
    own = pipeline.run(spec, workdir, "evaluate")
    both = pipeline.run(spec, workdir, "evaluate", [sets[0], exported[0]])
    names = ["krr_st", "krr_st-0", str(exported[0])]
    assert [row["method"] for row in both["rows"]][-3:] == names
    errors = {row["method"]: row["repr_error"] for row in both["rows"] if row["method"] in names}
    assert errors["krr_st"] == own["rows"][-1]["repr_error"]
    assert errors["krr_st-0"] == errors[names[2]] == pytest.approx(errors["krr_st"], rel=1e-6)
    assert both["budget"] == own["budget"]


def scope_of(workdir, **changes):
    spec = make_spec(**CROSS | changes)
    metrics, display = Metrics(workdir / "metrics.jsonl"), Display()
    context = Context(spec, load_data(spec.data, "test"), workdir, metrics, display)
    return Scope(context, own_sets(context), spec.evaluation.controls)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # Who is changed by what, of a set's student, an untrained student, a ViT, and the teacher.
        ({"updates": 6}, {"krr_st/convnet", "krr_st/vit"}),
        ({"vit_recipe": to_config(RecipeSpec("adamw", 0.1))}, {"krr_st/vit"}),
        ({"recipes": {"representation": to_config(RecipeSpec(learning_rate=0.2))}}, {"krr_st/convnet"}),
        ({"recipes": {"labels": to_config(RecipeSpec(learning_rate=0.2))}}, set()),
        ({"sections": {"finetune": {"steps": 4}}}, {"krr_st/convnet", "none/convnet", "krr_st/vit"}),
        ({"sections": {"knn": {"neighbors": 3}}}, {"krr_st/convnet", "none/convnet", "krr_st/vit", "teacher/None"}),
        ({"sections": {"few": {"l2": 0.1}}, "controls": ("none",), "only": "vit"}, set()),
    ],
)
def test_a_setting_changes_the_cells_that_depend_on_it_and_no_others(workdir, change, expected):
    plain, changed = scope_of(workdir), scope_of(workdir, **change)
    probes = [("krr_st", "convnet"), ("none", "convnet"), ("krr_st", "vit"), ("teacher", None)]
    moved = set()
    for method, student in probes:
        cell = Cell(method, student, "digits", 0)
        moved |= {f"{method}/{student}"} if cell_digest(plain, cell) != cell_digest(changed, cell) else set()
    assert moved == expected


def test_every_cell_has_a_digest_of_its_own(workdir):
    scope = scope_of(workdir)
    digests = [cell_digest(scope, cell) for cell in cells(scope)]
    assert len(set(digests)) == len(digests) == 22


def test_another_version_of_a_protocol_changes_the_cells_that_it_reads(workdir, monkeypatch):
    scope, own, teachers = scope_of(workdir), Cell("krr_st", "convnet", "digits", 0), Cell("teacher", None, "digits", 0)
    before = [cell_digest(scope, cell) for cell in (own, teachers)]
    monkeypatch.setitem(PROTOCOLS._objects, "finetune", PROTOCOLS["finetune"]._replace(version=99))
    # The teacher is not fine-tuned.
    assert [cell_digest(scope, cell) == old for cell, old in zip((own, teachers), before, strict=True)] == [False, True]


def write_pairs(folder, targets, **manifest):
    """Write eight-pixel images by hand, with these targets."""
    folder.mkdir()
    draw = np.random.RandomState(0)
    np.save(folder / "images.npy", draw.normal(size=(len(targets), 8, 8, 1)).astype(np.float32))
    np.save(folder / "targets.npy", targets.astype(np.float32))
    about = {"kind": "pairs", "name": folder.name, "normalization": {"mean": [0.3], "std": [0.4]}, **manifest}
    (folder / "manifest.json").write_text(json.dumps(about))
    return folder


def test_what_the_targets_are_picks_the_recipe_and_the_loss_and_whether_there_is_an_error(workdir, tmp_path):
    scope = scope_of(workdir)
    about = {"teacher": {"digest": scope.context.teacher_digest}}
    # As wide as the representation, so that the width tells nothing.
    targets = np.eye(scope.context.width)[np.arange(12) % 10]
    kinds = ("representation", "labels", "logits")
    folders = [write_pairs(tmp_path / kind, targets, target_kind=kind, **about) for kind in kinds]
    rows = pipeline.run(make_spec(controls=()), workdir, "evaluate", folders)["rows"][-3:]
    assert [row["target_kind"] for row in rows] == list(kinds)
    assert ["repr_error" in row for row in rows] == [True, False, False]
    assert all("knn" in row for row in rows)
    assert len({row["digest"] for row in rows}) == 3
    # A rate that nothing survives is that of the labels alone.
    lost = make_spec(controls=(), updates=60, recipes={"labels": to_config(RecipeSpec(learning_rate=1e30))})
    rows = pipeline.run(lost, workdir, "evaluate", folders)["rows"][-3:]
    assert ["failed" in row for row in rows] == [False, True, False]
    assert "recipes.labels.learning_rate" in rows[1]["failed"]


def test_sets_of_labels_need_no_teacher(tmp_path):
    folder = write_pairs(tmp_path / "labels", np.eye(10) - 0.1, target_kind="labels")
    results = pipeline.run(make_spec(), tmp_path / "run", "evaluate", [folder])
    assert [(row["method"], row.get("target_kind")) for row in results["rows"]] == [("none", None), ("labels", "labels")]
    assert not any("failed" in row or "repr_error" in row for row in results["rows"])
    assert not (tmp_path / "run" / "checkpoints").exists()


@dataclass(frozen=True)
class ToySpec:
    """The share of test images whose first feature is above a bound."""

    bound: float = field(default=0.0, metadata={"range": (-1.0, 1.0), "smoke": 0.5})


def share_above(spec, readout, tools):
    # Students of sets and untrained ones alike.
    assert all(abs(np.sqrt(np.mean(e.train_features**2)) - 1) < 1e-3 for e in readout.encoded)
    return {f"toy_{spec.bound:g}": [float(np.mean(e.eval_features[:, 0] > spec.bound)) for e in readout.encoded]}


TOY = Protocol(
    spec=ToySpec,
    version=1,
    columns=lambda spec: {f"toy_{spec.bound:g}": f"above {spec.bound:g}"},
    definition="a share of nothing in particular",
    run=share_above,
)


@pytest.fixture
def toy():
    PROTOCOLS.register("toy", TOY)
    yield
    PROTOCOLS.remove("toy")


def test_a_protocol_from_elsewhere_goes_from_a_config_to_a_column(workdir, toy):
    spec = make_spec(protocols=("toy", "knn"), controls=("none",), sections={"toy": {"bound": 0.25}})
    assert spec.chosen_protocols() == {"knn": KnnSpec(), "toy": ToySpec(0.25)}
    assert make_spec().protocols["toy"] == ToySpec(0.5)
    results = pipeline.run(spec, workdir, "evaluate")
    assert all({"knn", "toy_0.25"} <= set(row) for row in results["rows"])
    assert results["protocols"]["toy"] == {"columns": {"toy_0.25": "above 0.25"}, "definition": TOY.definition}
    assert results["summary"][0]["toy_0.25"]["mean"] == results["rows"][0]["toy_0.25"]
    text = (workdir / "report" / "results.md").read_text()
    assert "| k-NN | above 0.25 |" in text
    assert "student's representation; a share of nothing in particular." in text
    with pytest.raises(InputError, match=r"config\.protocols\.toy\.bound is 2\.0, expected -1\.0 to 1\.0"):
        make_spec(sections={"toy": {"bound": 2.0}})


def test_a_protocol_that_does_not_return_what_it_announces_is_named(workdir, toy):
    PROTOCOLS.register("liar", TOY._replace(columns=lambda spec: {"truth": "truth"}))
    try:
        with pytest.raises(ValueError, match=r"the protocol liar returned .*expected truth with 1 values each"):
            pipeline.run(make_spec(protocols=("liar",), controls=("none",)), workdir, "evaluate")
    finally:
        PROTOCOLS.remove("liar")


def test_a_student_that_diverges_has_a_row_that_says_so_and_the_others_go_on(workdir, capsys):
    settings = {"recipes": {"representation": to_config(RecipeSpec(learning_rate=1e30))}, "controls": ("none",), "updates": 60}
    results = pipeline.run(make_spec(**settings), workdir, "evaluate")
    assert [row["method"] for row in results["rows"]] == ["none", "krr_st"]
    assert "knn" in results["rows"][0]
    assert "knn" not in results["rows"][1]
    assert "loss" in results["rows"][1]["failed"]
    assert "no scores for krr_st, seed 0" in capsys.readouterr().out


def test_names_of_controls_are_refused_and_foreign_sets_of_such_names_go_by_their_path(workdir, tmp_path):
    config = default_config()
    config.methods.none = config.methods.krr_st
    with pytest.raises(InputError, match=r"methods\.none has the name of a control"):
        to_spec(config)
    manifest = {"kind": "pairs", "name": "full", "normalization": {"mean": [0.3], "std": [0.4]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert list(named_sets([tmp_path], make_spec())) == [str(tmp_path)]
    with pytest.raises(InputError, match="given twice"):
        named_sets([tmp_path, tmp_path], make_spec())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is damaged: it is not valid JSON"):
        named_sets([tmp_path], make_spec())


def test_exports_that_would_replace_each_other_are_refused(workdir, tmp_path):
    own = workdir / "distilled" / "krr_st" / "seed_0"
    copy = shutil.copytree(own, tmp_path / "copy")
    with pytest.raises(InputError, match="would replace the export of"):
        pipeline.export(workdir, "npz", [own, copy])
    assert not (workdir / "export").exists()


def test_sets_and_datasets_that_do_not_fit_are_named(workdir, tmp_path):
    spec = make_spec(datasets={"again": to_config(DataSpec(size=12))})
    with pytest.raises(InputError, match=r"datasets\.again has images of \(12, 12, 1\), expected \(8, 8, 1\).*datasets\.again\.size=8"):
        pipeline.run(spec, workdir, "evaluate")
    with pytest.raises(InputError, match="has the name of the distilled set's own dataset"):
        pipeline.run(make_spec(datasets={"digits": to_config(DataSpec())}), workdir, "evaluate")
    np.save(tmp_path / "images.npy", np.zeros((9, 12, 12, 1), np.float32))
    np.save(tmp_path / "targets.npy", np.zeros((9, 3), np.float32))
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "pairs", "normalization": {"mean": [0.3], "std": [0.4]}}))
    with pytest.raises(InputError, match=r"has images of \(12, 12, 1\), the data \(8, 8, 1\)"):
        pipeline.run(make_spec(), tmp_path / "elsewhere", "evaluate", [tmp_path])


def test_a_damaged_results_file_is_refused_and_kept(workdir, capsys):
    (workdir / "results.json").write_text("{not json")
    with pytest.raises(InputError, match=r"results\.json is not a results file"):
        pipeline.run(make_spec(), workdir, "evaluate")
    assert (workdir / "results.json").read_text() == "{not json"


def test_the_tasks_of_the_command_line(workdir, capsys):
    settings = ["--config.only=krr_st", "--config.evaluation.protocols=('knn',)"]
    args = ["--config", "digits:smoke", *QUICK_TEACHER, *settings, "--workdir", str(workdir / "run")]
    for task in ("teacher", "distill", "evaluate"):
        assert main([*args, f"--task={task}"]) == 0, capsys.readouterr().err
    assert (workdir / "run" / "results.json").is_file()
    for command in (["--task=report"], ["--task=export", "--format=png"]):
        assert main([*command, "--workdir", str(workdir / "run")]) == 0
    assert (workdir / "run" / "export" / "png" / "krr_st" / "seed_0" / "images" / "identity-00000.png").is_file()
    assert parse([*args, "--task=evaluate", "--set=a", "--set=b"]).sets[1].name == "b"
    assert main(["--task=export", "--format=jpg", "--workdir", str(workdir / "run")]) == 2
    assert "jpg" in capsys.readouterr().err
