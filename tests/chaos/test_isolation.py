"""A run needs nothing of its surroundings: no network, no home, no terminal, no plots; and a mistake is told without jax."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from quick import QUICK_TEACHER

from ssdd_jax.cli import parse
from ssdd_jax.main import main
from ssdd_jax.stages import pipeline

REPOSITORY = Path(__file__).parents[2]
CONFIG = ["--config", "digits:smoke", "--config.only=krr_st", "--config.teacher.steps=4"]
# Of every stage a little.
CONFIG += ["--config.evaluation.protocols=('knn',)", "--config.evaluation.controls=('none', 'teacher')"]
CONFIG += QUICK_TEACHER
SET = "distilled/krr_st/seed_0/distilled.safetensors"


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key != "seconds"}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def outcome(workdir):
    """Return what a run leaves, times aside."""
    results = without_times(json.loads((workdir / "results.json").read_text()))
    return (workdir / SET).read_bytes(), (workdir / "metrics.jsonl").read_bytes(), results, {file.name for file in workdir.rglob("*.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of all stages."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main([*CONFIG, "--workdir", str(workdir)]) == 0
    return workdir


# Of every mistake the arguments and what the line must name. {folder} holds some broken config files.
MISTAKES = [
    ("--config digit --workdir x", "did you mean 'digits'"),
    ("--config none_such.py --workdir x", "none_such.py: no such file"),
    ("--config {folder} --workdir x", "no such file or shipped config"),
    ("--config digits:smok --workdir x", "did you mean 'smoke'"),
    ("--config digits --workdir x --config.outr.steps=5", "no key 'outr'; did you mean 'outer'"),
    ("--config digits --workdir x --config.outer.stps=5", "no key 'stps'; did you mean 'steps'"),
    ("--config digits --workdir x --config.steps_per_dispach=5", "did you mean 'steps_per_dispatch'"),
    ("--config digits --workdir x --config.outer.steps=abc", "config.outer.steps=abc"),
    ("--config digits --workdir x --config.outer.steps=1.5", "config.outer.steps"),
    ("--config digits --workdir x --config.outer=5", "outer"),
    ("--config digits --workdir x --config.seeds=zero", "seeds"),
    ("--config digits --workdir x --config.outer.steps", "config.outer.steps"),
    ("--config digits --workdir x --config.only=ourz", "did you mean 'ours'"),
    ("--config digits --workdir x stray", "stray argument 'stray'"),
    ("--config digits --workdir x --wrkdir y", "Did you mean: workdir"),
    ("--config digits --workdir x --task=distil", "did you mean 'distill'"),
    ("--config digits --workdir x --accept_changes=perhaps", "accept_changes"),
    ("--config digits --workdir", "workdir"),
    ("--config", "config"),
    ("--config digits", "--workdir is missing"),
    ("--workdir x", "--config is missing"),
    ("--config {folder}/without.py --workdir x", "no function get_config"),
    ("--config {folder}/raising.py --workdir x", "ZeroDivisionError: division by zero"),
    ("--config {folder}/nothing.py --workdir x", "get_config"),
    ("--config {folder}/number.py --workdir x", "number.py returned int, expected a ConfigDict"),
    ("--config {folder}/syntax.py --workdir x", "SyntaxError"),
    ("--config {folder}/importing.py --workdir x", "none_such_module"),
    ("--config {folder}/binary.py --workdir x", "null bytes"),
    ("--config {folder}/strange.py --workdir x", "name"),
]
CONFIG_FILES = {
    "without": b"x = 1",
    "raising": b"def get_config(variant=''): return 1 / 0",
    "nothing": b"def get_config(variant=''): pass",
    "number": b"def get_config(variant=''): return 3",
    "syntax": b"def get_config( return",
    "importing": b"import none_such_module",
    "binary": b"\xff\xfe\x00",
    "strange": b"from ml_collections import ConfigDict\ndef get_config(variant=''): return ConfigDict({'name': [1]})",
}
ANSWERS = """if True:
    import contextlib, io, json, sys, traceback
    from ssdd_jax.main import main

    for args in json.loads(sys.argv[1]):
        error = io.StringIO()
        with contextlib.redirect_stderr(error):
            try:
                status = main(args)
            except BaseException:
                status = traceback.format_exc()
        print(json.dumps([status, error.getvalue()]))
"""


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """The environment of a process that cannot import jax, and a folder to run it in."""
    folder = tmp_path_factory.mktemp("without jax")
    (folder / "path").mkdir()
    (folder / "path" / "jax.py").write_text('raise ImportError("jax must not be imported")')
    return {**os.environ, "PYTHONPATH": f"{folder / 'path'}{os.pathsep}{REPOSITORY}"}, folder


@pytest.fixture(scope="module")
def answers(without_jax):
    """What the command line says to every mistake, without jax."""
    environment, folder = without_jax
    for name, content in CONFIG_FILES.items():
        (folder / f"{name}.py").write_bytes(content)
    args = [[word.format(folder=folder) for word in mistake.split()] for mistake, _ in MISTAKES]
    command = [sys.executable, "-c", ANSWERS, json.dumps(args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (folder / "x").exists()
    return dict(zip([mistake for mistake, _ in MISTAKES], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("mistake", "named"), MISTAKES, ids=[mistake for mistake, _ in MISTAKES])
def test_a_mistake_in_the_settings_is_one_line_and_status_2_without_jax(mistake, named, answers):
    status, error = answers[mistake]
    assert status == 2, error or status
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error


def test_the_settings_are_checked_before_jax_is_needed_and_then_it_is_missed(without_jax):
    environment, folder = without_jax
    command = [sys.executable, "-m", "ssdd_jax.main", *CONFIG, "--workdir", "x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    # Otherwise the other tests would show nothing.
    assert done.returncode == 1
    assert "jax must not be imported" in done.stderr


@pytest.mark.parametrize("module", ["main", "data"])
def test_help_needs_no_jax(module, without_jax):
    environment, folder = without_jax
    command = [sys.executable, "-m", f"ssdd_jax.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits" in done.stdout


@pytest.mark.parametrize("module", ["main", "data"])
def test_help_whose_reader_is_gone_ends_quietly(module, without_jax):
    environment, folder = without_jax
    with closed_pipe() as stdout:
        command = [sys.executable, "-m", f"ssdd_jax.{module}", "--help"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment)
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(without_jax):
    environment, folder = without_jax
    command = [sys.executable, "-m", "ssdd_jax.main", "--debug", "--config", "digits", "--workdir", "x", "--config.outer.stps=5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "InputError: the config has no key 'stps'" in done.stderr.splitlines()[-1]


@contextlib.contextmanager
def closed_pipe():
    """Yield the end of a pipe that is to be written to, whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def without_network():
    """Return what a command that may not reach any network begins with; nothing where the system does not allow that."""
    commands = (["unshare", "-n"], ["unshare", "-r", "-n"]) if shutil.which("unshare") else ()
    return next((command for command in commands if subprocess.run([*command, "true"], capture_output=True).returncode == 0), [])


def test_a_run_without_a_network_a_home_a_terminal_or_a_reader_has_the_same_bytes(whole, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "TERM", "LANG", "USER", "LOGNAME")}
    environment |= {"NO_COLOR": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    environment |= {"TZ": "Odd/Nowhere+25:61", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "1"}
    workdir = tmp_path / "a run ä ☃"
    # The shell closes its input.
    command = [*without_network(), "sh", "-c", 'exec "$@" <&-', "sh"]
    command += [sys.executable, "-m", "ssdd_jax.main", *CONFIG, "--workdir", str(workdir)]
    with closed_pipe() as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert outcome(workdir) == outcome(whole)
    assert [path.name for path in tmp_path.iterdir()] == [workdir.name]


def forget_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "OSError"])
def test_a_report_without_plots_is_written_and_says_so(error, whole, tmp_path, monkeypatch, capsys):
    forget_matplotlib(monkeypatch)
    if error == "ImportError":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        note = "matplotlib is not installed"
    else:
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "matplotlib.py").write_text(f"raise {error}('no fonts here')")
        monkeypatch.syspath_prepend(tmp_path / "path")
        note = f"matplotlib raised {error}: no fonts here"
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "report")
    assert main([*CONFIG, "--workdir", str(workdir)]) == 0
    captured = capsys.readouterr()
    assert f"loss curves skipped: {note}" in captured.out
    assert captured.err == ""
    names = {file.name for file in (workdir / "report").iterdir()} - {"index.html"}
    assert names == {"results.md", "krr_st-images.png", "nearest.safetensors"}
    assert "loss.png" not in (workdir / "report" / "results.md").read_text()


def pretrain(workdir, logger):
    pipeline.run(parse([*CONFIG, "--workdir", str(workdir)]).spec, workdir, "teacher", logger=logger)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_is_told_every_line_of_the_metrics(tmp_path):
    told = []
    records = pretrain(tmp_path, lambda stage, step, values: told.append({"stage": stage, "step": step, **values}))
    assert told == records
    assert {record["stage"] for record in records} == {"teacher", "teacher/held-out"}


@pytest.mark.parametrize("error", [ConnectionError("no route to the tracker"), MemoryError(), StopIteration()], ids=repr)
def test_a_logger_that_raises_is_not_asked_again_and_the_run_goes_on(error, whole, tmp_path, capsys):
    calls = []

    def logger(*args):
        calls.append(args)
        raise error

    records = pretrain(tmp_path, logger)
    assert len(calls) == 1
    assert f"warning: the logger raised {type(error).__name__}" in capsys.readouterr().out
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert records == [record for record in map(json.loads, lines) if record["stage"].startswith("teacher")]


def test_a_logger_cannot_change_what_is_logged(whole, tmp_path):
    records = pretrain(tmp_path, lambda stage, step, values: values.clear())
    assert records == [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()][: len(records)]
