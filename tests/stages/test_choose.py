"""The choice of automatic settings within a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from quick import VIEWS

from ssdd_jax.cli import load_config
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.runtime import stop
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import AUTOMATIC, smoke, to_config
from ssdd_jax.stages import choose, pipeline
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.distill import MethodRun


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
    assert [set(trial) for trial in trials.values()] == [{"settings", "images", "error"}] * 2
    assert "auto, trial 2: image_bases=" in capfd.readouterr().out
    # The set is of the better of the two, and says of which settings.
    best = min(trials.values(), key=lambda trial: trial["error"])["settings"]
    chosen = read_manifest(tmp_path / "distilled" / "auto" / "seed_0")["chosen"]
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
    pipeline.run(replace(spec, trials=replace(spec.trials, steps=3)), tmp_path, "distill", accept_changes=True)
    assert "nothing fits" in capfd.readouterr().out


def test_a_trial_is_judged_by_images_that_its_set_does_not_start_from(spec, tmp_path):
    data = load_data(spec.data, "test")
    context = Context(spec, data, tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display(quiet=True))
    judged = choose._Trials(context, "auto", MethodRun).judged
    assert len(judged) == len(data.train_images)
    assert judged.sum() == -(-len(judged) // 10)
    others = np.flatnonzero(~judged)
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
