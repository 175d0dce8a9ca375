import dataclasses
import json

import pytest
from quick import QUICK_TEACHER

from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.main import main
from ssdd_jax.settings.evaluation import KnnSpec
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.presets import PRESETS
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.provenance import check_changes, provenance

SPEC = RunSpec(methods=PRESETS)


def begun(folder, spec=SPEC, **others):
    (folder / "spec.json").write_text(json.dumps({**provenance(spec, "f" * 64), **others}))
    return folder / "spec.json"


def changed(**sections):
    parts = {
        name: dataclasses.replace(getattr(SPEC, name), **values) if dataclasses.is_dataclass(getattr(SPEC, name)) else values
        for name, values in sections.items()
    }
    return provenance(dataclasses.replace(SPEC, **parts), "f" * 64)


def test_a_workdir_goes_on_with_the_same_settings(tmp_path):
    assert check_changes(tmp_path / "spec.json", changed(), False) == []
    assert check_changes(begun(tmp_path), changed(), False) == []


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"outer": {"ridge": 1e-3}}, ["  config.outer.ridge: 1e-06 -> 0.001"]),
        ({"num_pairs": 20}, ["  config.num_pairs: 10 -> 20"]),
        (
            {"teacher": {"seed": 1, "widths": (8, 16)}},
            ["  config.teacher.widths: [32, 64, 128] -> [8, 16]", "  config.teacher.seed: 0 -> 1"],
        ),
        ({"data": {"validation": 0.2}}, ["  config.data.validation: 0.1 -> 0.2"]),
        (
            {"methods": {**PRESETS, "ours": dataclasses.replace(PRESETS["ours"], learning_rate=1.0)}},
            ["  config.methods.ours.learning_rate: 0.01 -> 1.0"],
        ),
    ],
)
def test_what_was_made_depends_on_is_refused_with_a_line_each(tmp_path, sections, lines):
    now = provenance(dataclasses.replace(SPEC, methods=sections["methods"]), "f" * 64) if "methods" in sections else changed(**sections)
    with pytest.raises(InputError) as caught:
        check_changes(begun(tmp_path), now, False)
    first, *rest = str(caught.value).splitlines()
    assert "was begun with other settings; give another --workdir, or --accept_changes" in first
    assert rest == lines
    assert check_changes(begun(tmp_path), now, True)[1:] == lines


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluation": {"updates": 5}, "log_every": 3, "seeds": (4,), "only": "ours", "checkpoints": {"every": 7}},
        {"data": {"data_dir": "elsewhere", "memory_gb": 0.0}},
        {"protocols": {"knn": KnnSpec(neighbors=3)}},
        {"methods": {**PRESETS, "new": RegressionSpec(image_bases=3)}},
        {"methods": {"ours": PRESETS["ours"]}},
    ],
)
def test_what_nothing_that_was_made_depends_on_may_change(tmp_path, sections):
    now = provenance(dataclasses.replace(SPEC, methods=sections["methods"]), "f" * 64) if "methods" in sections else changed(**sections)
    assert check_changes(begun(tmp_path), now, False) == []


def test_steps_may_change_and_it_is_said(tmp_path):
    lines = check_changes(begun(tmp_path), changed(outer={"steps": 1200}, teacher={"steps": 7}), False)
    assert lines == [
        "config.teacher.steps: 1000 -> 7; what it changes starts from its first step",
        "config.outer.steps: 600 -> 1200; what it changes starts from its first step",
    ]


READ = {
    "data_fingerprint": ({"data": {"source": "arrays:moved/a.npz", "data_dir": "b", "size": 8, "channels": 1}}, "data"),
    "checkpoint_fingerprint": ({"teacher": {"checkpoint": "moved/t.pt"}}, "teacher's checkpoint"),
    "features_fingerprint": ({"teacher": {"features": "moved/f.npz"}}, "teacher's features"),
}


@pytest.mark.parametrize("name", READ)
def test_what_has_a_fingerprint_is_compared_by_it_alone(tmp_path, name):
    sections, what = READ[name]
    now = {**changed(**sections), name: "f" * 64}
    # The same content elsewhere, or read with settings that change nothing.
    assert check_changes(begun(tmp_path, **{name: "f" * 64}), now, False) == []
    # Other content at the same place, and at another.
    with pytest.raises(InputError, match=f"fingerprint of the {what}: aaaaaaaaaaaa -> ffffffffffff") as caught:
        check_changes(begun(tmp_path, **{name: "a" * 64}), {**changed(), name: "f" * 64}, False)
    assert "config.data" not in str(caught.value)
    with pytest.raises(InputError, match=r"\n  config\.(data\.source|teacher\.(checkpoint|features)): '.*' -> 'a?.*moved/"):
        check_changes(begun(tmp_path, **{name: "a" * 64}), now, False)


def test_a_checkpoint_whose_fingerprint_an_older_version_did_not_keep_is_compared_by_its_path(tmp_path):
    file = begun(tmp_path)
    before = json.loads(file.read_text())
    del before["checkpoint_fingerprint"]
    file.write_text(json.dumps(before))
    assert check_changes(file, changed(), False) == []
    with pytest.raises(InputError, match=r"config\.teacher\.checkpoint: '' -> 't\.pt'"):
        check_changes(file, {**changed(teacher={"checkpoint": "t.pt"}), "checkpoint_fingerprint": "f" * 64}, False)


def test_a_setting_that_an_older_version_did_not_know_had_its_default(tmp_path):
    file = begun(tmp_path)
    before = json.loads(file.read_text())
    del before["settings"]["outer"]["real_flip"]
    file.write_text(json.dumps(before))
    assert check_changes(file, changed(), False) == []
    with pytest.raises(InputError, match=r"config\.outer\.real_flip: 0\.5 -> 0\.1"):
        check_changes(file, changed(outer={"real_flip": 0.1}), False)


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}', ""])
def test_settings_that_cannot_be_read_are_never_taken_for_the_same(tmp_path, content):
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(StorageError, match=r"spec\.json cannot be read"):
        check_changes(tmp_path / "spec.json", changed(), False)


def test_the_command_refuses_changes_with_status_2_touches_nothing_and_accepts_them_when_told(tmp_path, capsys):
    args = ["--config", "digits:smoke", *QUICK_TEACHER, "--task=teacher", "--workdir", str(tmp_path)]
    assert main(args) == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main([*args, "--config.teacher.learning_rate=0.5"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[1:] == ["  config.teacher.learning_rate: 0.002 -> 0.5"]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert main([*args, "--config.teacher.learning_rate=0.001", "--accept_changes"]) == 0
    assert main(args) == 2
