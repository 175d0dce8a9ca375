"""One bit that changes anywhere in what a run has stored is noticed."""

import random
import shutil

import pytest
from quick import QUICK_TEACHER

from ssdd_jax.errors import DataError
from ssdd_jax.main import main
from ssdd_jax.stages.verify import verify

FLIPS = 160


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    settings = ["--config", "digits:smoke", "--config.only=krr_st,ours", "--task=distill", *QUICK_TEACHER]
    assert main([*settings, "--workdir", str(workdir)]) == 0
    for fmt in ("safetensors", "npz", "png"):
        assert main(["--task=export", f"--format={fmt}", "--workdir", str(workdir)]) == 0
    return workdir


def test_any_flipped_bit_of_a_set_an_export_a_checkpoint_or_representations_is_noticed(workdir):
    verify(workdir)
    kinds = [sorted(file for file in (workdir / kind).rglob("*") if file.is_file()) for kind in ("distilled", "export", "checkpoints")]
    kinds.append([file for file in sorted(workdir.iterdir()) if file.is_file()])
    assert {file.name for file in kinds[-1]} == {"SHA256SUMS", "metrics.jsonl", "spec.json"}
    files = [[file for file in kind if file.stat().st_size] for kind in kinds]
    random.seed(0)
    for number in range(FLIPS):
        # As many in each kind, whatever their sizes.
        file = random.choice(files[number % len(files)])
        content = file.read_bytes()
        position, bit = random.randrange(len(content)), random.randrange(8)
        file.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
        with pytest.raises(DataError, match=r"1 of \d+ are damaged: "):
            verify(workdir)
        file.write_bytes(content)
    verify(workdir)


def test_the_command_names_what_is_damaged_or_missing_and_has_status_3(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    assert main(["--task=verify", "--workdir", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "ok " in shown
    assert "damaged" not in shown
    (copy / "export" / "npz" / "ours" / "seed_0" / "export.npz").unlink()
    (copy / "distilled" / "krr_st" / "seed_0" / "SHA256SUMS").unlink()
    assert main(["--task=verify", "--workdir", str(copy)]) == 3
    shown = capsys.readouterr()
    assert "export.npz changed since written" in shown.out
    assert "SHA256SUMS is missing" in shown.out
    assert shown.err.startswith("error: 2 of ")
    assert shown.err.count("\n") == 1
    # A set alone, by its folder.
    assert main(["--task=verify", "--workdir", str(copy), "--set", str(copy / "distilled" / "ours" / "seed_0")]) == 0
    assert main(["--task=verify", "--workdir", str(copy), "--set", str(copy / "none")]) == 3
    assert main(["--task=verify", "--workdir", str(tmp_path / "nowhere")]) == 2


def test_the_sums_are_those_that_sha256sum_reads(workdir):
    import subprocess

    folder = workdir / "export" / "png" / "ours" / "seed_0"
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
