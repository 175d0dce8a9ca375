"""The choice of automatic settings within a run."""

import json
from dataclasses import replace

import pytest
from quick import VIEWS

from ssdd_jax.cli import load_config
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.runtime import stop
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import AUTOMATIC, smoke, to_config
from ssdd_jax.stages import choose, pipeline


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
