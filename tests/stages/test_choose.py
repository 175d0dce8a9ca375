"""The choice of automatic settings within a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from quick import VIEWS

from ssdd_jax.cli import load_config
from ssdd_jax.core.optimizers import num_steps
from ssdd_jax.core.real import RealImages
from ssdd_jax.errors import InputError
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.runtime import stop
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import AUTOMATIC, PRESETS, smoke, to_config
from ssdd_jax.stages import choose, pipeline
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.distill import MethodRun
from ssdd_jax.stages.features import Features


@pytest.fixture
def spec():
    config = load_config("digits:smoke")
    config.methods = to_config({"auto": AUTOMATIC})
    config.only = ""
    smoke(config)
    config.trials.most = 2
    config.teacher.update(VIEWS)
    return to_spec(config)


def test_trials_choose_once_and_an_interrupted_choice_goes_on(spec, tmp_path, monkeypatch, capfd):
    run = choose._Trials._run
    seen = []

    def interrupted(self, settings, folder):
        seen.append(settings)
        if len(seen) == 2:
            raise stop.Stopped("asked to")
        return run(self, settings, folder)

    monkeypatch.setattr(choose._Trials, "_run", interrupted)
    with pytest.raises(stop.Stopped):
        pipeline.run(spec, tmp_path, "distill")
    pipeline.run(spec, tmp_path, "distill")
    assert len(seen) == 3
    assert seen[1] == seen[2] != seen[0]
    (file,) = (tmp_path / "checkpoints").glob("choice-auto-*.json")
    trials = json.loads(file.read_text())
    assert [set(trial) for trial in trials.values()] == [{"settings", "images", "error", "seconds"}] * 2
    assert "auto, trial 2: image_bases=" in capfd.readouterr().out
    # The set is of the better of the two, and says of which settings.
    best = min(trials.values(), key=lambda trial: trial["error"])["settings"]
    manifest = read_manifest(tmp_path / "distilled" / "auto" / "seed_0")
    # The trials are part of what a set takes.
    assert manifest["seconds"] >= sum(trial["seconds"] for trial in trials.values())
    chosen = manifest["chosen"]
    assert {name: chosen[name] for name in best} == best
    assert not list((tmp_path / "checkpoints").glob("choice-auto-*/"))

    # Set by hand, the same settings give the same set.
    arrays = lambda folder: {file.name: file.read_bytes() for file in folder.rglob("*.safetensors")}
    by_hand = replace(spec.methods["auto"], **{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()})
    pipeline.run(replace(spec, methods={"by_hand": by_hand}), tmp_path, "distill", accept_changes=True)
    assert arrays(tmp_path / "distilled" / "auto") == arrays(tmp_path / "distilled" / "by_hand") != {}

    # A third call chooses and distils nothing; the budget of trials is part of what a set depends on.
    before = (tmp_path / "distilled" / "auto" / "seed_0" / "manifest.json").stat().st_mtime_ns
    pipeline.run(spec, tmp_path, "distill")
    assert len(seen) == 3
    assert (tmp_path / "distilled" / "auto" / "seed_0" / "manifest.json").stat().st_mtime_ns == before
    monkeypatch.setattr(choose._Trials, "_run", lambda *_: {"refused": "nothing fits"})
    with pytest.raises(InputError, match=r"config\.methods\.auto .* none of 2 trials was possible, .* because: nothing fits"):
        pipeline.run(replace(spec, trials=replace(spec.trials, steps=3)), tmp_path, "distill", accept_changes=True)

    # Half a file of trials is no reason to stop, and what did not fit into memory is tried again.
    file.write_text(file.read_text()[:40])
    monkeypatch.setattr(choose._Trials, "_run", lambda *_: {"refused": "too large", "too_large": True})
    with pytest.raises(InputError, match="too large"):
        pipeline.run(spec, tmp_path, "distill", accept_changes=True)
    assert f"{file} is damaged; the trials of auto are made again" in capfd.readouterr().out
    assert json.loads(file.read_text()) == {}


@pytest.fixture
def context(spec, tmp_path):
    return Context(spec, load_data(spec.data, "test"), tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display(quiet=True))


def test_a_trial_is_judged_by_images_that_its_set_is_not_made_of(context):
    trials, total = choose._Trials(context, "auto", MethodRun), len(context.data.train_images)
    judged, others = trials.judged, trials.others
    assert len(judged) == -(-total // 10)
    assert sorted([*judged, *others]) == list(range(total))
    # As many images as there are others, so that all of them are taken.
    context.chosen["auto"] = RegressionSpec(steps=0)
    run = MethodRun(context, "auto", others)
    run.plan = replace(run.plan, num_images=len(others))
    distilled = run.method.start(run.spec, run.plan, run.inputs, 0)
    order = lambda rows: np.sort(np.asarray(rows).reshape(len(rows), -1).sum(1))
    np.testing.assert_allclose(order(distilled.images.rows), order(context.normalized_images(others)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(order(distilled.reprs.rows[0]), order(context.reprs("train")[others]), rtol=1e-4, atol=1e-4)
    # There are no more images than that to start from.
    assert MethodRun(context, "auto", np.arange(3)).plan.num_images == 3

    # Steps draw the others alone, and bases are components of them.
    rows, targets = run.inputs.real.draw(3, 0)
    assert set(np.asarray(rows).tolist()) <= set(others.tolist())
    assert isinstance(run.inputs.real, RealImages)
    np.testing.assert_array_equal(targets % total, rows)
    all_rows, few = context.pca(None, 2, "auto"), run.inputs.repr_pca(2)
    np.testing.assert_allclose(few.mean, context.reprs("train")[others].mean(0), rtol=1e-4, atol=1e-5)
    assert np.abs(few.mean - all_rows.mean).max() > 1e-4


def test_an_error_that_is_not_finite_is_a_refusal(context, monkeypatch, tmp_path):
    trials = choose._Trials(context, "auto", MethodRun)
    monkeypatch.setattr(choose._Trials, "_error_of_student", lambda *_: float("inf"))
    assert trials.error(RegressionSpec(steps=0)) == float("inf")
    (trial,) = json.loads(trials.file.read_text()).values()
    assert "training images is inf" in trial["refused"]


def test_features_that_lack_views_are_chosen_from_those_that_they_have(context):
    rows = np.ones((len(context.data.train_images), 4), np.float32)
    context.given = replace(context.given, teacher=Features({"identity": rows, "hflip": rows}))
    assert context.views_of(AUTOMATIC) == ("identity", "hflip")
    # What is asked for by name is refused if it is missing.
    assert context.views_of(PRESETS["ours"]) == PRESETS["ours"].views


def test_whether_steps_pay_is_tried_with_all_of_them(context):
    seen = []

    def record(trial, name, among):
        seen.append((num_steps(trial.spec, trial.spec.methods[name]), trial.spec.pool.size, trial.spec.checkpoints.every))
        raise InputError("seen")

    choose._Trials(context, "auto", record).error(RegressionSpec())
    choose._Trials(context, "auto", record).error(RegressionSpec(steps=0))
    context.spec = replace(context.spec, methods={"auto": replace(AUTOMATIC, steps=7)})
    choose._Trials(context, "auto", record).error(RegressionSpec(steps=7))
    # The long one goes on from its checkpoints.
    long = (context.spec.outer.steps, context.spec.pool.size, context.spec.checkpoints.every)
    members = context.spec.trials.pool_size
    assert seen == [long, (0, members, 0), (context.spec.trials.steps, members, 0)]
    assert 0 not in long
    assert long[:2] != seen[2][:2]
