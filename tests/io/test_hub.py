import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_server import serving

from ssdd_jax import DistilledSet, Layout, Plain, expand, export_distilled, load_distilled, push_to_hub, read_pairs, save_distilled
from ssdd_jax.cli import parse
from ssdd_jax.errors import InputError
from ssdd_jax.io.hub import download
from ssdd_jax.io.manifest import damaged_files
from ssdd_jax.io.teacher_file import save_teacher
from ssdd_jax.main import main

NORMALIZATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
VIEWS = ("identity", "rot90")
TOKEN = "hf_" + "abcdefgh" * 4


def save(folder, kind="representation", **about):
    keys = jax.random.split(jax.random.key(0))
    layout = Layout((8, 8, 3), (8, 8, 3), VIEWS, ("stored", "stored"), target_kind=kind)
    targets = jax.random.normal(keys[1], (2, 4, 5)) if kind == "representation" else jnp.stack([jnp.eye(4)] * 2)
    distilled = DistilledSet(Plain(jax.random.normal(keys[0], (4, 8, 8, 3))), Plain(targets), None, layout)
    return save_distilled(folder, distilled, normalization=NORMALIZATION, method="ours", seed=0, dataset="toy", **about)


@pytest.fixture
def source(tmp_path):
    """A set in the folder of its run, which has results for it."""
    rows = [{"method": "ours", "seed": 0, "student": "convnet", "dataset": "toy", "repr_error": 0.25, "linear": 0.761}]
    results = {"budget": {"num_pairs": 3, "scalars": 1234}, "protocols": {"linear": {"columns": {"linear": "linear probe"}}}, "rows": rows}
    folder = save(tmp_path / "run" / "distilled" / "ours" / "seed_0")
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    # It was imported before, perhaps, and has chosen its folder then.
    return lambda folder: library.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def test_the_hub_shows_every_view_of_every_image_with_its_representation(source, tmp_path, datasets):
    folder = export_distilled(source, tmp_path / "hub", "hf", licence="cc-by-4.0")
    rows = datasets(folder)
    images, targets = (np.asarray(array) for array in expand(load_distilled(source)))
    assert rows.column_names == ["image", "representation", "view", "index"]
    assert (rows["view"], rows["index"]) == (["identity"] * 4 + ["rot90"] * 4, [0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(np.asarray(rows["representation"], np.float32), targets.reshape(8, 5))
    mean, std = (np.asarray(NORMALIZATION[key], np.float32) for key in ("mean", "std"))
    pixels = np.clip(np.rint(255 * (images * std + mean)), 0, 255).reshape(8, 8, 8, 3)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in rows["image"]]), pixels)


def test_the_set_itself_is_in_the_folder_and_every_file_but_the_card_is_vouched_for(source, tmp_path):
    pytest.importorskip("datasets")
    folder = export_distilled(source, tmp_path / "hub", "hf", licence="mit")
    for name in ("distilled.safetensors", "manifest.json", "SHA256SUMS"):
        assert (folder / "distilled" / name).read_bytes() == (source / name).read_bytes()
    np.testing.assert_array_equal(read_pairs(folder).images, read_pairs(source).images)
    (folder / "README.md").write_text("edited on the Hub")
    assert damaged_files(folder) == []
    before = {file.relative_to(folder) for file in folder.rglob("*")}
    export_distilled(source, folder, "hf", licence="mit")
    assert {file.relative_to(folder) for file in folder.rglob("*")} == before


def test_the_card_says_what_the_set_is(source, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folder = export_distilled(source, tmp_path / "hub", "hf", licence="cc-by-4.0", repo="me/toy")
    card = hub.DatasetCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0"
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-00000-of-00001.parquet"}]
    assert (folder / card.data.configs[0]["data_files"][0]["path"]).is_file()
    for text in (
        "| method | ours |",
        "| linear probe | 76.1 % |",
        "| repr_error | 0.250",
        'load_distilled("hf://me/toy")',
        "0.5, 0.4, 0.3",
    ):
        assert text in card.text
    assert "weight_decay" in card.text
    for language in card.text.split("```python\n")[1:]:
        compile(language.partition("```")[0], "card", "exec")


def test_a_set_of_labels_has_its_labels(tmp_path, datasets):
    folder = export_distilled(save(tmp_path / "set", "labels"), tmp_path / "hub", "hf", licence="unknown")
    rows = datasets(folder)
    assert rows.column_names == ["image", "labels", "view", "index", "label"]
    assert rows["label"] == [0, 1, 2, 3] * 2
    assert rows["labels"][2] == [0, 0, 1, 0]
    assert "image-classification" in (folder / "README.md").read_text()


def test_a_set_and_a_teacher_are_pushed_and_the_set_is_loaded_again(source, tmp_path):
    pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    about = {"net": "convnet", "widths": [8], "dataset": "toy", "image_shape": [8, 8, 3], "repr_width": 5, "normalization": NORMALIZATION}
    about |= {"pretraining": "Barlow Twins", "centre": [0.0] * 5, "scale": 1.0, "digest": "d"}
    teacher = save_teacher(tmp_path / "run" / "teacher", {"features.0.weight": np.ones((8, 3, 3, 3), np.float32)}, about)
    with serving() as (address, repos, requests):
        script = (
            "import sys\nimport numpy as np\nfrom ssdd_jax import expand, load_distilled\nfrom ssdd_jax.main import main\n"
            "run = ['--task=push', '--licence=mit', '--workdir', sys.argv[1]]\n"
            "assert main([*run, '--repo=me/toy', '--private']) == 0\n"
            "assert main([*run, '--repo=me/net', '--set', sys.argv[2]]) == 0\n"
            "np.savez(sys.argv[3], *expand(load_distilled('hf://me/toy')))\n"
            "assert main([*run, '--repo=me/toy', '--set', 'hf://me/toy']) == 2\n"
            "load_distilled('hf://me/other')"
        )
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", script, str(tmp_path / "run"), str(teacher), str(tmp_path / "loaded.npz")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "InputError: cannot download hf://me/other: RepositoryNotFoundError" in done.stderr, done.stderr
    assert set(repos) == {"datasets me/toy", "models me/net"}
    assert set(repos["models me/net"]) == {"README.md", "SHA256SUMS", "manifest.json", "teacher.safetensors"}
    card = hub.ModelCard(repos["models me/net"]["README.md"].decode(), ignore_metadata_errors=False)
    assert (card.data.license, card.data.library_name) == ("mit", "ssdd-jax")
    assert "| net | convnet |" in card.text
    assert repos["datasets me/toy"]["distilled/distilled.safetensors"] == (source / "distilled.safetensors").read_bytes()
    with np.load(tmp_path / "loaded.npz") as loaded:
        for found, expected in zip(loaded.values(), expand(load_distilled(source)), strict=True):
            np.testing.assert_array_equal(found, expected)
    # The library's own requests carry the login; nothing else has it.
    assert any(TOKEN in headers.get("authorization", "") for _, headers in requests)
    assert TOKEN not in done.stdout + done.stderr
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=push"], "--repo is missing, expected USER/NAME, a repository .*; --task=export --format=hf only writes its folder"),
        (["--task=push", "--repo=me"], "--repo is 'me', expected USER/NAME"),
        (["--task=push", "--repo=me/toy"], "--licence is missing, expected that of the source images as the Hub spells it"),
        (["--task=push", "--repo=me/toy", "--licence=CC BY"], "--licence is 'CC BY', expected"),
        (["--task=export", "--format=hf"], "--licence is missing"),
        (["--task=export", "--repo=me/toy"], "--repo is for --task=push, the task is export"),
        (["--task=export", "--licence=mit"], "--licence is for --task=push and --format=hf"),
    ],
)
def test_what_a_repository_needs_is_asked_for_before_anything_is_written(source, arguments, message, capsys):
    workdir = source.parents[2]
    before = sorted(workdir.rglob("*"))
    assert main([*arguments, "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(workdir.rglob("*")) == before


def test_of_several_sets_one_is_to_be_named(source, capsys):
    save(source.parent / "seed_1")
    assert main(["--task=push", "--repo=me/toy", "--licence=mit", "--workdir", str(source.parents[2])]) == 2
    assert "2 sets in" in capsys.readouterr().err
    assert parse(["--task=push", "--repo=me/toy", "--workdir", "x", "--set=y"]).repo == "me/toy"


def test_a_missing_library_is_one_line_with_the_command(source, tmp_path, monkeypatch):
    for library in ("huggingface_hub", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    for call in (
        lambda: push_to_hub(source, "me/toy", licence="mit"),
        lambda: export_distilled(source, tmp_path / "hub", "hf", licence="mit"),
        lambda: load_distilled("hf://me/toy"),
    ):
        with pytest.raises(InputError, match=r"which is not installed; run: pip install ssdd-jax\[hf\]"):
            call()
    assert not (tmp_path / "hub").exists()
    with pytest.raises(InputError, match="'hf://me' is not hf://USER/NAME"):
        download("hf://me")
