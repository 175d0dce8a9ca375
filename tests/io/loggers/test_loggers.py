import json
import sys

import pytest
from PIL import Image

from ssdd_jax.errors import InputError
from ssdd_jax.io.loggers import Loggers, make_loggers
from ssdd_jax.io.loggers.console import make_console
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.registry import LOGGERS
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.provenance import check_changes


class Recorder:
    """A logger that keeps what it is called with, and may raise."""

    def __init__(self, workdir=None, name="", settings=None, error=None):
        self.about, self.lines, self.error, self.is_closed = (workdir, name, settings), [], error, False

    def __call__(self, stage, step, values):
        self.lines.append((stage, step, dict(values)))
        values.clear()
        if self.error:
            raise self.error

    def close(self):
        self.is_closed = True


def test_several_loggers_get_every_line_and_none_can_change_it(tmp_path):
    first, second, plain = Recorder(), Recorder(), []
    loggers = Loggers({"first": lambda: first, "second": lambda: second, "": lambda: lambda *line: plain.append(line)})
    metrics = Metrics(tmp_path / "metrics.jsonl", loggers)
    for step in (10, 20):
        metrics.write("teacher", step, {"loss": [0.5]})
    loggers.close()
    lines = [("teacher", step, {"loss": [0.5]}) for step in (10, 20)]
    assert first.lines == second.lines == plain == lines
    assert [(r["stage"], r["step"]) for r in metrics.read()] == [("teacher", 10), ("teacher", 20)]
    assert first.is_closed
    assert second.is_closed


@pytest.mark.parametrize("error", [ConnectionError("no route"), MemoryError(), StopIteration()], ids=repr)
def test_a_logger_that_raises_is_reported_once_and_the_others_go_on(error):
    bad, good, warnings = Recorder(error=error), Recorder(), []
    loggers = Loggers({"bad": lambda: bad, "good": lambda: good}, warnings.append)
    for step in (1, 2, 3):
        loggers("teacher", step, {})
    loggers.close()
    assert (len(bad.lines), len(good.lines)) == (1, 3)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: the logger bad raised {type(error).__name__}:")
    assert good.is_closed


def test_a_logger_that_cannot_be_made_or_closed_is_reported_once(tmp_path):
    class Unclosable(Recorder):
        """A logger whose close raises."""

        def close(self):
            raise OSError("gone")

    def broken(*about):
        raise ImportError("No module named 'tracker'")

    warnings = []
    loggers = Loggers({"broken": broken, "unclosable": Unclosable}, warnings.append)
    loggers("teacher", 1, {})
    loggers("teacher", 2, {})
    loggers.close()
    assert [line.split("; ")[0] for line in warnings] == [
        "warning: the logger broken raised ImportError: No module named 'tracker'",
        "warning: the logger unclosable raised OSError: gone",
    ]


def test_a_maker_from_outside_is_called_with_the_run_and_only_when_a_line_comes(tmp_path):
    made = []
    LOGGERS.register("recorder", lambda *about: made.append(Recorder(*about)) or made[-1])
    try:
        spec = RunSpec(logger="recorder, console", name="toy")
        assert spec.chosen_loggers() == ("recorder", "console")
        own = []
        loggers = make_loggers(spec.chosen_loggers(), tmp_path, spec.name, json_ready(spec), lambda *line: own.append(line))
        assert not made
        loggers("teacher", 1, {"loss": 0.25})
        loggers.close()
    finally:
        LOGGERS.remove("recorder")
    ((workdir, name, settings),) = [recorder.about for recorder in made]
    assert (workdir, name, settings["logger"]) == (tmp_path, "toy", "recorder, console")
    assert made[0].lines == own == [("teacher", 1, {"loss": 0.25})]
    with pytest.raises(InputError, match=r"config\.logger names 'recorder', expected one of console"):
        RunSpec(logger="recorder")


class Gallery(Recorder):
    """A logger that takes pictures and tables as well."""

    def picture(self, *about):
        self.lines.append(about)

    def table(self, *about):
        self.lines.append(about)


def test_a_picture_is_drawn_once_and_only_for_a_logger_that_takes_pictures():
    drawn = []
    draw = lambda: drawn.append(1) or Image.new("L", (4, 4))
    plain, first, second = Recorder(), Gallery(), Gallery()
    Loggers({"plain": lambda: plain}).picture("distill/ours", 5, "bases/seed_0", draw)
    assert not drawn
    Loggers({"plain": lambda: plain, "first": lambda: first, "second": lambda: second}).picture("distill/ours", 5, "bases/seed_0", draw)
    assert len(drawn) == 1
    assert plain.lines == []
    assert first.lines == second.lines
    assert first.lines[0][:3] == ("distill/ours", 5, "bases/seed_0")


def test_a_picture_that_cannot_be_drawn_is_reported_and_its_loggers_go_on():
    gallery, warnings = Gallery(), []
    loggers = Loggers({"gallery": lambda: gallery}, warnings.append)
    loggers.picture("distill/ours", 5, "bases/seed_0", lambda: Image.new("L", (-1, 4)))
    loggers.table("Results", ["method"], [["ours"]])
    assert [line.split(":")[:2] for line in warnings] == [["warning", " no picture bases/seed_0 of distill/ours"]]
    assert gallery.lines == [("Results", ["method"], [["ours"]])]


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_library_that_is_missing_is_named_with_the_command_before_anything_runs(name, library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"ssdd_jax.io.loggers.{name}", raising=False)
    monkeypatch.setattr(LOGGERS, "_objects", {})
    with pytest.raises(InputError) as caught:
        make_loggers([name], tmp_path, "toy", {})
    message = f"config.logger names '{name}', which needs {library}, which is not installed; run: pip install ssdd-jax[{name}]"
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_the_console_prints_a_line_each(tmp_path, capsys):
    console = make_console(tmp_path, "toy", {})
    console("distill/ours/seeds_0", 50, {"loss": [0.123456, 2.0], "ridge": 1e-6, "increases": 3})
    console.close()
    assert capsys.readouterr().out == "distill/ours/seeds_0 50: loss 0.1235 2, ridge 1e-06, increases 3\n"


def test_another_logger_invalidates_no_workdir(tmp_path):
    now = {"settings": json_ready(RunSpec()), "data_fingerprint": "x"}
    (tmp_path / "spec.json").write_text(json.dumps(now))
    assert check_changes(tmp_path / "spec.json", {**now, "settings": json_ready(RunSpec(logger="console"))}, accept=False) == []
