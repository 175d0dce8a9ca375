"""A disk that is full, read-only or holds something else: a run ends with one line, or goes on to the same bytes."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from quick import QUICK_TEACHER

from ssdd_jax.main import main

REPOSITORY = Path(__file__).parents[2]
CONFIG = ["--config", "digits:smoke", "--config.only=krr_st", "--config.teacher.steps=4", "--config.evaluation.protocols=('knn',)"]
CONFIG += QUICK_TEACHER
SET = "distilled/krr_st/seed_0"


def distil(workdir):
    return main([*CONFIG, "--task=distill", "--workdir", str(workdir)])


def tensors(workdir):
    return (workdir / SET / "distilled.safetensors").read_bytes()


def only(workdir, pattern):
    (found,) = workdir.glob(pattern)
    return found


def error_line(text):
    """Return what a run that fails says, which is one line."""
    assert "Traceback" not in text
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    return text


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def undo_distillation(workdir):
    shutil.rmtree(workdir / "distilled")
    shutil.rmtree(only(workdir, "checkpoints/krr_st-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, as far as its distilled set."""
    workdir = tmp_path_factory.mktemp("whole")
    assert distil(workdir) == 0
    return workdir


@pytest.fixture
def copy(whole, tmp_path):
    """A run as an interruption leaves it: nothing vouches for its files yet. Of an ended one, tests/test_main.py."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "SHA256SUMS").unlink()
    return copy


# A namespace of mounts of its own, so that nothing is left behind; a user who is not root may have one by being root in it.
def with_mounts():
    for command in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        probe = "mount -t tmpfs -o size=1m none /mnt && mount -o remount,size=2m /mnt"
        if shutil.which("unshare") and subprocess.run([*command, "sh", "-c", probe], capture_output=True).returncode == 0:
            return command
    pytest.skip("needs to mount a file system")


DISK = """if True:
    import contextlib, io, json, shutil, subprocess, sys
    from pathlib import Path
    from ssdd_jax.main import main

    disk, kept, config = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

    def mount(*options):
        subprocess.run(["mount", *options, str(disk)], check=True)

    def call(*args):
        error = io.StringIO()
        with contextlib.redirect_stderr(error):
            status = main([*args, "--workdir", str(disk / "run")])
        saved = len(list(disk.glob("run/checkpoints/**/*.sha256.json")))
        print("reply", json.dumps([status, error.getvalue(), saved]), flush=True)
        return status
"""


def on_a_disk(tmp_path, script):
    """Run a script that mounts something at `disk`; return of every `call` its status, its stderr and the number of checkpoints then."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    command = [*with_mounts(), sys.executable, "-c", DISK + script, str(tmp_path / "disk"), str(tmp_path / "kept"), *CONFIG]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # Nor may anything be said late, by a thread or as the process ends.
    assert done.stderr == ""
    return [json.loads(line.removeprefix("reply ")) for line in done.stdout.splitlines() if line.startswith("reply ")]


def test_a_run_on_a_full_disk_ends_with_5_wherever_it_is_and_with_space_goes_on_to_the_same_bytes(whole, tmp_path):
    # A checkpoint asks first whether there is space for it. Told that there is, it finds out otherwise as it takes it.
    script = """
    ask = shutil.disk_usage

    def with_space(kilobytes, told=False):
        mount("-o", f"remount,size={kilobytes}k")
        shutil.disk_usage = (lambda path: ask(path)._replace(free=2**40)) if told else ask
        return call(*config, "--task=distill")

    mount("-t", "tmpfs", "-o", "size=8k", "none")
    with_space(8)
    with_space(24, told=True)
    with_space(136, told=True)
    with_space(200, told=True)
    with_space(300)
    call("--task=verify")
    with_space(8192)
    call("--task=verify")
    shutil.copytree(disk / "run", kept / "run")
    """
    *full, verified_half, finished, verified = on_a_disk(tmp_path, script)
    for status, line, _ in full:
        assert status == 5, line
        error_line(line)
        assert "No space left" in line or "no space left" in line or "RESOURCE_EXHAUSTED" in line
    # They end at different things, and what was saved once stays.
    assert len({line for _, line, _ in full}) > 2
    saved = [count for _, _, count in full]
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]
    for reply in (verified_half, finished, verified):
        assert reply[:2] == [0, ""]
    assert tensors(tmp_path / "kept" / "run") == tensors(whole)
    assert (tmp_path / "kept" / "run" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.fixture
def no_new_compilations():
    """Keep what is cut off here out of the cache that all tests share."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.usefixtures("no_new_compilations")
def test_a_file_that_may_not_grow_to_its_end_ends_a_run_with_5_and_the_next_has_the_same_bytes(copy, whole, capsys):
    undo_distillation(copy)
    shutil.rmtree(only(copy, "checkpoints/representations-*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = set()
    # Too little for the settings, and for the representations.
    for kilobytes in (2, 24):
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
        try:
            assert distil(copy) == 5
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        lines.add(error_line(capsys.readouterr().err))
    assert len(lines) == 2
    assert all("File too large" in line for line in lines)
    assert distil(copy) == 0
    assert tensors(copy) == tensors(whole)
    assert not list(copy.rglob("*tmp*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_status_is_right_even_where_the_error_cannot_be_written(tmp_path):
    command = [sys.executable, "-m", "ssdd_jax.main", "--config", "none_such", "--workdir", str(tmp_path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=full, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2


def test_a_finished_run_on_a_read_only_disk_can_be_verified_and_nothing_else(whole, tmp_path):
    script = f"""
    mount("-t", "tmpfs", "-o", "size=8m", "none")
    shutil.copytree({str(whole)!r}, disk / "run")
    mount("-o", "remount,ro")
    call("--task=verify")
    call(*config)
    call("--task=export")
    """
    verified, ran, exported = on_a_disk(tmp_path, script)
    assert verified[:2] == [0, ""]
    assert ran[0] == 2
    assert "Read-only file system" in error_line(ran[1])
    assert exported[0] in (2, 5)
    assert "Read-only file system" in error_line(exported[1])


@pytest.fixture
def nothing_computes(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the data was read before the workdir was looked at")

    monkeypatch.setattr("ssdd_jax.stages.pipeline.load_data", refuse)


# The last one is no UTF-8, which checkpoints are written under.
WORKDIRS = ["file", "file/below", "/proc/none/below", "x" * 300, "~nobody_has_this_name/run", "loop", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("workdir", WORKDIRS, ids=ascii)
def test_a_workdir_that_cannot_be_is_refused_before_anything_is_computed(workdir, nothing_computes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    Path("loop").symlink_to("loop")
    assert main([*CONFIG, "--workdir", workdir]) == 2
    assert workdir.encode(errors="backslashreplace").decode()[:50] in error_line(capsys.readouterr().err)
    assert Path("file").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission_is_refused_before_anything_is_computed(nothing_computes, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main([*CONFIG, "--workdir", str(tmp_path)]) == 2
    assert "Permission denied" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["checkpoints", "distilled", "report", "teacher", "spec.json", "metrics.jsonl", "results.json"])
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_named_before_anything_is_computed(name, nothing_computes, tmp_path, capsys):
    is_file = "." in name
    if is_file:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("kept")
    assert main([*CONFIG, "--workdir", str(tmp_path)]) == 2
    line = error_line(capsys.readouterr().err)
    assert f"{tmp_path / name} is a {'folder' if is_file else 'file'}" in line
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "place",
    [
        "distilled/krr_st",
        SET,
        f"{SET}/distilled.safetensors",
        "checkpoints/teacher-*",
        "checkpoints/krr_st-*/free",
        "checkpoints/representations-*",
        "checkpoints/representations-*/train-identity.npy",
    ],
)
def test_deeper_inside_a_file_for_a_folder_or_a_folder_for_a_file_is_one_line(place, copy, capsys):
    path = only(copy, place)
    if place.startswith("checkpoints"):
        # So that the checkpoints are needed, the last one made again.
        shutil.rmtree(only(copy, "checkpoints/krr_st-*") / "free" / "6")
        shutil.rmtree(copy / "distilled")
    was_file = path.is_file()
    remove(path)
    if was_file:
        path.mkdir()
    else:
        path.write_text("kept")
    assert distil(copy) in (2, 5)
    assert path.name in error_line(capsys.readouterr().err)
    assert path.is_dir() if was_file else path.read_text() == "kept"


def half_deleted(folder):
    shutil.rmtree(folder / "6" / "state")


def without_record(folder):
    (folder / "6.sha256.json").unlink()


def empty(folder):
    shutil.rmtree(folder / "6")
    (folder / "6").mkdir()


def stale_and_strange(folder):
    shutil.rmtree(folder / "6")
    for name in ("6.orbax-checkpoint-tmp-1700000000", "8.orbax-checkpoint-tmp", "4 (copy)"):
        shutil.copytree(folder / "4", folder / name)
    (folder / "9.sha256.json").write_text("{}")
    (folder / ".6.sha256.json.1.tmp").write_text("{")
    (folder / "notes").mkdir()
    (folder / "README.txt").write_text("kept")
    (folder / "8").write_text("a file named like a step")


def strange_numbers(folder):
    shutil.rmtree(folder / "6")
    (folder / "007").mkdir()
    (folder / "٨").mkdir()


@pytest.mark.parametrize("damage", [half_deleted, without_record, empty, stale_and_strange, strange_numbers])
def test_what_lies_among_the_checkpoints_does_not_stop_a_run_or_change_its_bytes(damage, copy, whole, capsys):
    shutil.rmtree(copy / "distilled")
    folder = only(copy, "checkpoints/krr_st-*/free")
    damage(folder)
    assert distil(copy) == 0, capsys.readouterr().err
    assert tensors(copy) == tensors(whole)
    assert (copy / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not list(copy.rglob("*.orbax-checkpoint-tmp*"))
    capsys.readouterr()
    assert main(["--task=verify", "--workdir", str(copy)]) == 0
    assert f"ok       {folder / '6'}\n" in capsys.readouterr().out


def test_a_stage_without_a_whole_checkpoint_ends_with_5_and_starts_again_once_its_folder_is_gone(copy, whole, capsys):
    shutil.rmtree(copy / "distilled")
    folder = only(copy, "checkpoints/krr_st-*/free")
    for record in folder.glob("*.sha256.json"):
        flip(record)
    assert distil(copy) == 5
    assert f"no intact checkpoint is left in {folder}" in error_line(capsys.readouterr().err)
    shutil.rmtree(folder)
    assert distil(copy) == 0
    assert tensors(copy) == tensors(whole)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def garbage_header(file):
    file.write_bytes(b"\x93NUMPY\x01\x00" + bytes(range(256)))


def objects(file):
    np.save(file, np.array([{}], object))


def no_digest(file):
    file.with_suffix(".sha256.json").unlink()


def damaged_digest(file):
    flip(file.with_suffix(".sha256.json"))


DAMAGES = [flip, truncate, garbage_header, objects, no_digest, damaged_digest]


def test_damaged_representations_are_computed_again_with_a_warning_and_have_the_same_bytes(copy, whole, capsys):
    file = only(copy, "checkpoints/representations-*/train-identity.npy")
    before = {path: path.read_bytes() for path in (file, file.with_suffix(".sha256.json"))}
    for damage in DAMAGES:
        damage(file)
        if damage is flip:
            # What is distilled from them is the same too.
            undo_distillation(copy)
        else:
            shutil.rmtree(copy / "distilled")
        assert distil(copy) == 0, damage.__name__
        output = capsys.readouterr().out
        assert f"warning: {file}: it" in output, damage.__name__
        assert "it is recomputed" in output
        assert {path: path.read_bytes() for path in before} == before, damage.__name__
        assert tensors(copy) == tensors(whole)


def test_representations_that_were_cut_off_or_damaged_on_the_way_have_the_same_bytes(copy, whole):
    file = only(copy, "checkpoints/representations-*/train-identity.npy")
    before = file.read_bytes()
    file.rename(file.with_suffix(".partial"))
    flip(file.with_suffix(".partial"), 0.9)
    record = json.loads(file.with_suffix(".sha256.json").read_text())
    file.with_suffix(".rows.json").write_text(json.dumps({"done": record["shape"][0], "sha256": record["sha256"]}))
    undo_distillation(copy)
    assert distil(copy) == 0
    assert file.read_bytes() == before
    assert tensors(copy) == tensors(whole)
    assert not list(file.parent.glob("*.partial"))


@pytest.mark.parametrize(
    "line",
    [b"garbage", b"", b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"loss": 1}', b'{"stage": "teacher", "step": "4"}', b'{"stage": "teacher"'],
)
def test_a_damaged_line_amid_the_metrics_ends_a_run_with_5_and_its_number(line, copy, capsys):
    file = copy / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], line + b"\n", *lines[1:]]))
    damaged = file.read_bytes()
    assert main([*CONFIG, "--task=teacher", "--workdir", str(copy)]) == 5
    assert f"line 2 of {file}" in error_line(capsys.readouterr().err)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("kept", [40, -1])
def test_a_last_line_of_the_metrics_that_was_cut_off_is_written_again(kept, copy, whole):
    file = copy / "metrics.jsonl"
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines, last[:kept]]))
    # As when a run is killed while it writes: the step has no checkpoint yet.
    shutil.rmtree(only(copy, "checkpoints/krr_st-*") / "free" / "6")
    shutil.rmtree(copy / "distilled")
    assert distil(copy) == 0
    assert file.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert tensors(copy) == tensors(whole)


SPECS = [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"{}", b'{"settings": 1, "data_fingerprint": "x"}', b'{"settings": {}}']
SPECS += [b'{"settings": {}, "data_fingerprint": 3}', b'{"settings": {}, "data_fingerprint": null}']


@pytest.mark.parametrize("content", SPECS)
def test_a_damaged_spec_ends_a_run_with_5_and_stays(content, copy, capsys):
    (copy / "spec.json").write_bytes(content)
    assert main([*CONFIG, "--task=teacher", "--workdir", str(copy)]) == 5
    assert str(copy / "spec.json") in error_line(capsys.readouterr().err)
    assert (copy / "spec.json").read_bytes() == content


RESULTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"rows": 3}',
    b'{"rows": [3]}',
    b'{"rows": [{}]}',
    b'{"rows": [], "earlier": {"a": 1}}',
]


@pytest.mark.parametrize("content", RESULTS)
def test_damaged_results_are_one_line_for_the_evaluation_and_stay(content, copy, capsys, monkeypatch):
    monkeypatch.setattr("ssdd_jax.stages.evaluate.evaluate_group", lambda *_: pytest.fail("a row was computed beside damaged ones"))
    (copy / "results.json").write_bytes(content)
    assert main([*CONFIG, "--task=evaluate", "--workdir", str(copy)]) in (2, 3, 5)
    assert str(copy / "results.json") in error_line(capsys.readouterr().err)
    assert (copy / "results.json").read_bytes() == content


@pytest.mark.parametrize("content", [*RESULTS, b"{}", b'{"rows": []}'])
def test_damaged_results_are_one_line_for_the_report(content, tmp_path, capsys):
    (tmp_path / "results.json").write_bytes(content)
    assert main(["--task=report", "--workdir", str(tmp_path)]) in (2, 3, 5)
    assert str(tmp_path / "results.json") in error_line(capsys.readouterr().err)


def flipped_tensors(folder):
    flip(folder / "distilled.safetensors")


def no_tensors(folder):
    (folder / "distilled.safetensors").unlink()


def flipped_manifest(folder):
    flip(folder / "manifest.json")


def empty_manifest(folder):
    (folder / "manifest.json").write_bytes(b"")


def no_sums(folder):
    (folder / "SHA256SUMS").unlink()


def garbage_sums(folder):
    (folder / "SHA256SUMS").write_bytes(b"\xff\xfe")


def test_a_damaged_distilled_set_is_refused_by_verify_and_made_again_with_a_warning_and_the_same_bytes(copy, whole, capsys):
    for damage in (flipped_tensors, no_tensors, flipped_manifest, empty_manifest, no_sums, garbage_sums):
        damage(copy / SET)
        assert main(["--task=verify", "--workdir", str(copy)]) == 3, damage.__name__
        assert str(copy / SET) in error_line(capsys.readouterr().err)
        assert distil(copy) == 0, damage.__name__
        output = capsys.readouterr().out
        assert f"warning: {copy / SET}" in output, damage.__name__
        assert "it is made again" in output
        assert tensors(copy) == tensors(whole)
        assert main(["--task=verify", "--workdir", str(copy)]) == 0
        capsys.readouterr()


@pytest.mark.parametrize("damage", [flipped_tensors, no_tensors, flipped_manifest, empty_manifest, garbage_sums])
@pytest.mark.parametrize("task", ["export", "evaluate"])
def test_a_damaged_distilled_set_is_neither_exported_nor_evaluated(task, damage, copy, capsys):
    damage(copy / SET)
    assert main([*CONFIG, f"--task={task}", "--config.evaluation.controls=()", "--workdir", str(copy)]) == 3
    assert SET in error_line(capsys.readouterr().err)
    assert not (copy / "export").exists()
    assert not (copy / "results.json").exists()


def test_a_path_with_spaces_and_other_letters_is_like_any_other(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workdir = Path("my run ä ☃ 'x' %s [0] {y} $HOME;#")
    assert distil(workdir) == 0
    assert tensors(workdir) == tensors(whole)
    for fmt in ("safetensors", "npz", "png"):
        assert main(["--task=export", f"--format={fmt}", "--workdir", str(workdir)]) == 0
    capsys.readouterr()
    assert main(["--task=verify", "--workdir", str(workdir)]) == 0
    output = capsys.readouterr().out
    for place in (SET, "export/safetensors/krr_st/seed_0", "export/npz/krr_st/seed_0", "export/png/krr_st/seed_0"):
        assert f"ok       {workdir / place}\n" in output
    # Nothing has gone anywhere else.
    assert [path.name for path in tmp_path.iterdir()] == [workdir.name]
