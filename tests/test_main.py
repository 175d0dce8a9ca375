import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from quick import QUICK_TEACHER

from ssdd_jax import expand, load_distilled
from ssdd_jax.cli import parse, resolve_config, shipped_configs
from ssdd_jax.errors import DataError, InputError, Status, StorageError
from ssdd_jax.io.files import locked
from ssdd_jax.main import main
from ssdd_jax.report.nearest import read_nearest
from ssdd_jax.runtime import hosts, stop
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.networks import teacher_learner
from ssdd_jax.stages.pipeline import run
from ssdd_jax.stages.teacher import read_teacher

# Few methods, so that the run is short: the smoke variants of all configs are in test_configs.py.
ARGS = ["--config", "digits:smoke", "--config.only=krr_st,ours", *QUICK_TEACHER]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made by the command line in a process of its own, from another directory."""
    workdir = tmp_path_factory.mktemp("a run")
    command = [sys.executable, "-m", "ssdd_jax.main", *ARGS, "--workdir", str(workdir / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=workdir, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stderr
    return workdir / "out", done.stdout


def test_a_run_leaves_what_it_says(finished):
    workdir, output = finished
    for name in ("spec.json", "metrics.jsonl", "results.json", "report/results.md"):
        assert (workdir / name).is_file(), name
    results = json.loads((workdir / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["teacher_init", "teacher", "none", "krr_st", "ours"]
    scores = {"linear", "few_1", "few_5", "knn"}
    assert all(0 <= row[score] <= 1 for row in results["rows"] for score in scores)
    results["rows"] = [row for row in results["rows"] if row["method"] in ("krr_st", "ours")]
    assert results["budget"] == {"num_pairs": 4, "scalars": 4 * (64 + 16)}
    for row in results["rows"]:
        assert row["stored_scalars"] <= results["budget"]["scalars"]
        assert row["repr_error"] > 0
        distilled = load_distilled(workdir / "distilled" / row["method"] / f"seed_{row['seed']}")
        images, reprs = expand(distilled)
        assert images.shape == (row["num_views"], row["num_images"], 8, 8, 1)
        assert reprs.shape == (row["num_views"], row["num_images"], 16)
    assert json.loads((workdir / "spec.json").read_text())["settings"]["seeds"] == [0]
    assert "numbers; targets: identity stored" in output
    assert "results.md" in output


def test_a_run_writes_the_real_images_that_its_teacher_represents_most_like_its_own(finished):
    workdir, _ = finished
    (folder,) = (workdir / "checkpoints").glob("representations-*")
    reprs, images = np.load(folder / "train-identity.npy"), load_data(parse([*ARGS, "--workdir", "x"]).spec.data, "test").train_images
    for method, found in read_nearest(workdir).items():
        targets = np.asarray(expand(load_distilled(workdir / "distilled" / method / "seed_0"))[1])[0]
        distances = ((targets[:, None] - reprs[None]) ** 2).mean(-1) / reprs.var(0).mean()
        np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, : found.rows.shape[1]], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(distances, found.rows, 1), found.distances, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found.images, images[found.rows])
    assert set(read_nearest(workdir)) == {"krr_st", "ours"}


def test_two_runs_are_compared_and_left_as_they_are(finished, tmp_path, capsys):
    runs = [finished[0], shutil.copytree(finished[0], tmp_path / "copy")]
    state = lambda: {file: file.read_bytes() for run in runs for file in run.rglob("*") if file.is_file()}
    before, arguments = state(), ["--task=compare", *(f"--workdir={run}" for run in runs)]
    assert main([*arguments, f"--output={tmp_path / 'both'}"]) == 0
    assert state() == before
    text = (tmp_path / "both" / "results.md").read_text()
    assert all(f"| {label} | ours |" in text for label in ("out", "copy"))
    assert f"report: {tmp_path / 'both' / 'results.md'}" in "".join(capsys.readouterr().out.split("\n"))
    (tmp_path / "copy" / "results.json").write_text("{}")
    assert main([*arguments, f"--output={tmp_path / 'again'}"]) == 3
    assert "results.json in" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_every_logged_number_is_finite_and_steps_ascend(finished):
    workdir, _ = finished
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    stages = {record["stage"] for record in records}
    assert {"teacher", "distill/krr_st/seeds_0", "distill/ours/seeds_0"} <= stages
    for stage in stages:
        steps = [record["step"] for record in records if record["stage"] == stage]
        assert steps == sorted(set(steps))
    for record in records:
        numbers = [value for key, value in record.items() if key not in ("stage", "step")]
        assert numbers
        assert all(np.isfinite(value).all() for value in numbers)
    # How well the labels can be read from the teacher is logged as it trains, and at its end on the held-out images.
    assert all(0 <= record["probe_accuracy"][0] <= 1 for record in records if record["stage"] == "teacher")
    assert [0 <= record["probe_accuracy"] <= 1 for record in records if record["stage"] == "teacher/held-out"] == [True]


def test_the_teacher_of_a_run_is_kept_as_pytorch_names_it_and_represents_alike(finished):
    folder, spec = finished[0] / "teacher", parse([*ARGS, "--workdir", "x"]).spec
    about = json.loads((folder / "manifest.json").read_text())
    data = load_data(spec.data, spec.evaluation.split)
    learner = teacher_learner(spec.teacher, data.image_shape)
    variables = read_teacher(str(folder / "teacher.safetensors"), about["net"], learner)
    outputs = np.asarray(learner.apply(variables, data.normalize(data.train_images[:16])))
    found = (outputs - np.asarray(about["centre"])) / about["scale"]
    (file,) = finished[0].glob("checkpoints/representations-*/train-identity.npy")
    np.testing.assert_allclose(found, np.load(file)[:16], rtol=1e-3, atol=1e-4)


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    workdir, _ = finished
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file() and "report" not in file.parts}
    # Read first: it names the file of the report that changed, if one did.
    sums = set((workdir / "SHA256SUMS").read_text().splitlines())

    def refuse(*_, **__):
        raise AssertionError("a step was run although everything was complete")

    monkeypatch.setattr("ssdd_jax.stages.distill.MethodRun._optimise", refuse)
    monkeypatch.setattr("ssdd_jax.stages.evaluate.evaluate_group", refuse)
    run(parse([*ARGS, "--workdir", str(workdir)]).spec, workdir)
    assert set((workdir / "SHA256SUMS").read_text().splitlines()) == sums
    after = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file() and "report" not in file.parts}
    assert after == before


def test_results_that_changed_after_the_run_are_refused_and_named(finished, tmp_path, capsys):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    assert main(["--task=verify", "--workdir", str(copy)]) == 0
    results, picture = copy / "results.json", next((copy / "report").glob("*.png"))
    results.write_bytes(results.read_bytes().replace(b'"knn"', b'"kmn"', 1))
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    assert main(["--task=verify", "--workdir", str(copy)]) == 3
    assert f"damaged {copy}: report/{picture.name}, results.json changed since written" in " ".join(capsys.readouterr().out.split())
    for command in ([*ARGS], ["--task=report"]):
        assert main([*command, "--workdir", str(copy)]) == 3
        error = capsys.readouterr().err
        assert f"results.json in {copy} changed since the run ended; copy the folder again, or remove SHA256SUMS" in error
    # A run that has not ended, or whose user takes the files as they are, has none.
    (copy / "SHA256SUMS").unlink()
    assert main(["--task=verify", "--workdir", str(copy)]) == 0
    assert "the run has not ended" in capsys.readouterr().out


def test_the_first_line_comes_before_jax_is_imported(tmp_path):
    program = "import sys; sys.modules['jax'] = None; from ssdd_jax.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, *ARGS, "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert "import of jax halted" in done.stderr
    assert done.stdout == f"digits: all, in {tmp_path}\n"


def test_the_same_command_gives_the_same_bits_and_another_seed_others(finished, tmp_path):
    workdir, _ = finished
    # The other seed has the same teacher.
    shutil.copytree(workdir / "checkpoints", tmp_path / "1" / "checkpoints")
    for seed in (0, 1):
        args = ["--config.only=ours", f"--config.seeds=({seed},)", "--task=distill", "--workdir", str(tmp_path / str(seed))]
        assert main([*ARGS, *args]) == 0
    read = lambda folder, seed: (folder / "distilled" / "ours" / f"seed_{seed}" / "distilled.safetensors").read_bytes()
    assert read(tmp_path / "0", 0) == read(workdir, 0)
    assert read(tmp_path / "1", 1) != read(workdir, 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "digit", "--workdir", "x"], "did you mean 'digits'"),
        (["--config", "digits:smok", "--workdir", "x"], "variant 'smok' is unknown.*did you mean 'smoke'"),
        (["--config", "digits", "--workdir", "x", "--config.outer.stps=5"], "no key 'stps'; did you mean 'steps'"),
        (["--config", "digits", "--workdir", "x", "--config.outer.steps=abc"], "config.outer.steps=abc: invalid literal"),
        (["--config", "digits", "--workdir", "x", "--config.outer.steps=-3"], "config.outer.steps is -3, expected at least 0"),
        (["--config", "digits", "--workdir", "x", "stray"], "stray argument 'stray'"),
        (["--config", "digits"], "--workdir is missing"),
        (["--workdir", "x"], "--config is missing"),
        (["--config", "digits", "--wokdir", "x"], "wokdir.*Did you mean: workdir"),
        (["--config", "digits", "--workdir", "x", "--config.num_pairs=2"], "the budget of 2 pairs is 256; lower image_bases"),
        (["--config", "digits", "--workdir", "x", "--config.methods.basis.image_bases=65"], "image_bases is 65, expected at most 64"),
        (["--config", "digits", "--workdir", "x", "--config.methods.ours.factor_scale=big"], "factor_scale is 'big', expected 'balanced'"),
        (["--config", "digits", "--workdir", "x", "--config.student.widths=(4,4,4,4)"], "config.student: .*halves .* images to nothing"),
        (["--config", "digits", "--workdir", "setup.py"], "--workdir setup.py"),
        (["--config", "digits", "--workdir", "s3://bucket/run"], "--workdir is 's3://bucket/run', expected a path on this machine; mount"),
        (["--config", "digits", "--workdir", "gs://bucket/run"], "mount the bucket"),
        (["--workdir", "x", "--task=verify", "--set=hf://user/name"], "--set is 'hf://user/name', expected a path on this machine"),
        (
            ["--config", "digits", "--workdir", "x", "--config.data.source=folder:s3://b/x"],
            "data source folder: is 's3://b/x', expected a path",
        ),
        (["--config", "digits", "--workdir", "x", "--task=evalute"], "--task is 'evalute'.*did you mean 'evaluate'"),
        (["--config", "digits", "--workdir", "x", "--set=y"], "--set is for --task=evaluate, export, push, verify"),
        (["--config", "digits", "--workdir", "x", "--task=evaluate", "--set=y"], "--set y: no manifest.json there"),
        # A budget that methods would not fit into does not matter where none is run.
        (["--config", "digits", "--workdir", "x", "--task=evaluate", "--set=y", "--config.num_pairs=2"], "--set y: no manifest.json there"),
        (["--config", "digits:smoke", "--workdir", "x", "--task=evaluate"], "no distilled set of these settings at .*--task=distill"),
        (["--config", "digits", "--workdir", "x", "--config.teacher.checkpoint=none.pt"], "no file 'none.pt'"),
        (["--workdir", "x", "--task=report"], "no results.json in x"),
        (["--workdir", "x", "--task=export"], "no distilled set below x/distilled"),
        (
            ["--workdir", "x", "--workdir", "y", "--task=report"],
            "--workdir is given 2 times, which is for --task=compare",
        ),
        (["--workdir", "x", "--task=compare"], "a comparison needs two runs or more"),
        (["--workdir", "x", "--workdir", "y", "--task=compare"], "--workdir x: no such folder, expected that of a finished run"),
        (["--config", "digits", "--workdir", "x", "--output=y"], "--output is for --task=compare, the task is all"),
        (["--config", "digits", "--workdir", "x", "--config.evaluation.protocols=('knnn',)"], "protocols.0. is 'knnn'.*did you mean 'knn'"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.py").write_text("")
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "setup.py"]


def test_a_config_file_that_breaks_is_one_line(tmp_path, capsys):
    for content, message in (
        ("x = 1", "no function get_config"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def get_config( return", "SyntaxError"),
        ("import none_such", "none_such"),
    ):
        (tmp_path / "broken.py").write_text(content)
        assert main(["--config", str(tmp_path / "broken.py"), "--workdir", str(tmp_path / "w")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


def test_a_config_file_may_import_its_neighbours_and_count_with_numpy_and_names_may_be_listed(tmp_path):
    (tmp_path / "shared_sizes.py").write_text(
        "import numpy as np\nSTEPS, RATES, SEEDS = np.int64(7), np.float64([0.5, 0.25]), np.arange(2)\n"
    )
    mine = (
        "from shared_sizes import *",
        "from ssdd_jax.settings.presets import default_config",
        "def get_config():",
        "    config = default_config()",
        "    config.outer.update(steps=STEPS, b1=RATES[0])",
        "    config.seeds = SEEDS",
        "    return config",
    )
    (tmp_path / "mine.py").write_text("\n".join(mine))
    spec = parse(["--config", str(tmp_path / "mine.py"), "--workdir", "x", "--config.evaluation.protocols=knn,linear"]).spec
    assert (spec.outer.steps, spec.outer.b1, spec.seeds, spec.evaluation.protocols) == (7, 0.5, (0, 1), ("knn", "linear"))
    assert {type(number) for number in (spec.outer.steps, *spec.seeds)} == {int}
    # Another config's neighbour may have the same name.
    assert "shared_sizes" not in sys.modules


def test_u_beyond_the_rank_of_the_data_is_refused_before_anything_is_distilled(tmp_path, capsys):
    # The corner pixels of the digits are always blank, so 64 pixels have rank below 64.
    args = ["--config", "digits:smoke", *QUICK_TEACHER, "--workdir", str(tmp_path), "--config.only=basis_init", "--config.num_pairs=80"]
    settings = ["--config.methods.basis_init.image_bases=64", "--config.methods.basis_init.base_size=8"]
    assert main([*args, *settings]) == 2
    error = capsys.readouterr().err
    assert "image_bases is 64, expected at most" in error
    assert "the rank of the training images" in error
    assert not (tmp_path / "distilled").exists()


def test_a_config_is_found_by_name_and_by_path():
    assert resolve_config("digits:smoke").endswith("configs/digits.py:smoke")
    assert resolve_config("configs/digits.py") == "configs/digits.py"
    assert {"arrays", "cifar100", "digits", "fashion_mnist"} <= set(shipped_configs())


def test_help_lists_the_configs(capsys):
    assert main(["--help"]) == 0
    assert "digits" in capsys.readouterr().out


def test_every_exit_status_has_one_home_and_help_prints_them(capsys):
    assert [int(status) for status in Status] == [0, 1, 2, 3, 4, 5, 6, 75]
    assert (InputError.status, DataError.status, StorageError.status) == (2, 3, 5)
    assert (NumericalError.status, hosts.Lost.status, hosts.STATUS, stop.STATUS) == (4, 6, 6, 75)
    main([])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f" {status} {status.meaning}" in printed for status in Status)


def test_a_number_that_goes_bad_stops_the_run_with_the_step_and_status_4(tmp_path, capsys):
    args = [*ARGS, "--workdir", str(tmp_path), "--config.only=krr_st", "--config.methods.krr_st.learning_rate=1e38"]
    assert main(args) == 4
    error = capsys.readouterr().err
    assert "distill/krr_st/seeds_0: " in error
    assert "at step" in error
    assert not (tmp_path / "distilled").exists()


def test_two_runs_on_one_workdir_are_refused_and_a_dead_one_leaves_no_lock(tmp_path, capsys):
    holder = "import sys, time; from pathlib import Path; from ssdd_jax.io.files import locked\n"
    holder += "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert main(["--config", "digits:smoke", "--workdir", str(tmp_path), "--task=teacher"]) == 2
        assert f"another run is using {tmp_path}" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    with locked(tmp_path):
        pass
