import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from torch_writer import save_torch

from ssdd_jax import VIEWS, DistilledSet, Factors, Layout, Networks, Plain, expand, load_distilled, save_distilled
from ssdd_jax.errors import InputError
from ssdd_jax.io.artifacts import TENSORS
from ssdd_jax.io.export import FORMATS, TARGET_MEANINGS, export_distilled
from ssdd_jax.io.manifest import MANIFEST, SUMS, damaged_files
from ssdd_jax.io.pairs import read_pairs
from ssdd_jax.io.torch_files import read_torch
from ssdd_jax.settings.fields import TARGET_KINDS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
GREY, RGB = {"mean": [0.3], "std": [0.25]}, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def bases_set(key, channels=1):
    draw = iter(jax.random.split(key, 20))
    normal = lambda *shape: jax.random.normal(next(draw), shape)
    layout = Layout((8, 8, channels), (4, 4, channels), ("identity", "rot90", "hflip", "dim"), ("stored", "network", "shared", "network"))
    networks = Networks(w1=normal(2, 3, 2), b1=normal(2, 2), w2=normal(2, 2, 3), b2=normal(2, 3))
    pixels = 16 * channels
    images = Factors(normal(pixels), normal(5, pixels), normal(7, 5))
    return DistilledSet(images, Factors(normal(6), normal(3, 6), normal(1, 7, 3)), networks, layout)


def raw_set(key, channels=3):
    shape = (8, 6, channels)
    return DistilledSet(Plain(jax.random.normal(key, (4, *shape))), Plain(jax.random.normal(key, (1, 4, 5))), None, Layout(shape, shape))


@pytest.fixture(params=["bases", "raw"])
def source(request, tmp_path, key):
    distilled, normalization = (bases_set(key), GREY) if request.param == "bases" else (raw_set(key), RGB)
    teacher = {"centre": [0.5] * 6, "scale": 2.0}
    return save_distilled(tmp_path / "set", distilled, normalization=normalization, teacher=teacher, method="ours", seed=3, dataset="toy")


# That of the Hub has tests of its own.
@pytest.fixture(params=[fmt for fmt in FORMATS if fmt != "hf"])
def fmt(request):
    if request.param in ("pt", "ddranking"):
        pytest.importorskip("torch")
    return request.param


def expected_pixels(source):
    images = np.asarray(expand(load_distilled(source))[0])
    statistics = json.loads((source / MANIFEST).read_text())["normalization"]
    mean, std = (np.asarray(statistics[key], np.float32) for key in ("mean", "std"))
    return np.clip(np.rint(255 * (images * std + mean)), 0, 255).astype(np.uint8)


def refuses(message, call, *arguments):
    with pytest.raises(InputError, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_what_is_exported_is_read_back_bit_for_bit(source, tmp_path, fmt):
    images, targets = expand(load_distilled(source))
    exported = export_distilled(source, tmp_path / "deep" / "export", fmt)
    for pairs in (read_pairs(exported), read_pairs(source)):
        assert pairs.images.dtype == pairs.targets.dtype == np.float32
        np.testing.assert_array_equal(pairs.images, images.reshape(-1, *images.shape[2:]))
        np.testing.assert_array_equal(pairs.targets, targets.reshape(-1, targets.shape[-1]))
        assert pairs.manifest["normalization"] == json.loads((source / MANIFEST).read_text())["normalization"]


def arrays_of(exported, fmt):
    if fmt == "safetensors":
        import safetensors.numpy

        return safetensors.numpy.load_file(exported / "export.safetensors")
    return dict(np.load(exported / "export.npz", allow_pickle=False))


@pytest.mark.parametrize("fmt", ["safetensors", "npz"])
def test_the_archives_hold_pixels_and_numbers_view_by_view(source, tmp_path, fmt):
    arrays = arrays_of(export_distilled(source, tmp_path / "export", fmt), fmt)
    images, targets = expand(load_distilled(source))
    np.testing.assert_array_equal(arrays["images_uint8"], expected_pixels(source))
    assert {0, 255} <= set(arrays["images_uint8"].ravel().tolist())
    np.testing.assert_array_equal(arrays["images"], images)
    np.testing.assert_array_equal(arrays["targets"], targets)


def test_the_pictures_are_the_pixels(source, tmp_path):
    exported = export_distilled(source, tmp_path / "export", "png")
    pixels = expected_pixels(source)
    views = [view["name"] for view in json.loads((exported / MANIFEST).read_text())["views"]]
    for a, view in enumerate(views):
        for i in range(pixels.shape[1]):
            picture = np.asarray(Image.open(exported / "images" / f"{view}-{i:05d}.png"))
            np.testing.assert_array_equal(picture.reshape(pixels.shape[2:]), pixels[a, i])
    assert len(list((exported / "images").iterdir())) == pixels.shape[0] * pixels.shape[1]
    assert set(arrays_of(exported, "png")) == {"images", "targets"}


def test_pytorch_reads_what_krr_st_reads(source, tmp_path):
    torch = pytest.importorskip("torch")
    exported = export_distilled(source, tmp_path / "export", "pt")
    x_syn, y_syn = (torch.load(exported / name, map_location="cpu").detach() for name in ("x_syn.pt", "y_syn.pt"))
    images, targets = (np.asarray(array) for array in expand(load_distilled(source)))
    assert x_syn.dtype == y_syn.dtype == torch.float32
    assert x_syn.is_contiguous()
    np.testing.assert_array_equal(x_syn, images.reshape(-1, *images.shape[2:]).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(y_syn, targets.reshape(-1, targets.shape[-1]))


def test_the_manifest_says_what_the_files_are(source, tmp_path, fmt):
    exported = export_distilled(source, tmp_path / "export", fmt)
    manifest = json.loads((exported / MANIFEST).read_text())
    images, targets = (np.asarray(array) for array in expand(load_distilled(source)))
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == entry["sha256"]
    present = {str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()}
    assert present == {MANIFEST, SUMS, *manifest["files"]}
    assert damaged_files(exported) == []
    if fmt in ("safetensors", "npz"):
        (entry,) = manifest["files"].values()
        for name, array in arrays_of(exported, fmt).items():
            assert (entry["arrays"][name]["shape"], entry["arrays"][name]["dtype"]) == (list(array.shape), str(array.dtype))
            assert len(entry["arrays"][name]["axes"].split()) == array.ndim
    assert manifest["checksum"]["sha256"] == hashlib.sha256(images[0, 0].astype("<f4").tobytes()).hexdigest()
    assert [view["name"] for view in manifest["views"]] == list(load_distilled(source).layout.views)
    assert manifest["colours"] == ("grey" if images.shape[-1] == 1 else "RGB")
    assert manifest["values"]["x_syn" if fmt in ("pt", "ddranking") else "images"]["range"] == [images.min(), images.max()]
    assert (manifest["targets"]["centre"], manifest["targets"]["scale"]) == ([0.5] * 6, 2.0)
    assert (manifest["method"], manifest["seed"], manifest["dataset"]) == ("ours", 3, "toy")
    original = json.loads((source / MANIFEST).read_text())
    assert manifest["source_sha256"] == original["sha256"]
    assert manifest["stored_scalars"] == original["stored_scalars"]
    assert manifest["published_protocol"]["pretraining"]["weight_decay"] == 1e-3
    assert manifest["target_kind"] == "representation"
    assert manifest["targets"]["meaning"].startswith("the teacher's representation")


@pytest.fixture
def torch_files(monkeypatch):
    """Let tensors be written as PyTorch writes them, with or without it."""
    if importlib.util.find_spec("torch") is None:
        writer = SimpleNamespace(tensor=np.asarray, save=lambda array, file: save_torch(file, array))
        monkeypatch.setitem(sys.modules, "torch", writer)


def test_dd_ranking_is_handed_images_sorted_by_class_and_the_rate(tmp_path, key, torch_files):
    layout = Layout((8, 6, 3), (8, 6, 3), target_kind="labels")
    labels = jnp.eye(2)[jnp.array([1, 0, 1, 0])] * 0.75
    distilled = DistilledSet(Plain(jax.random.normal(key, (4, 8, 6, 3))), Plain(labels[None]), None, layout)
    source = save_distilled(tmp_path / "set", distilled, normalization=RGB, learning_rate=0.25)
    exported = export_distilled(source, tmp_path / "export", "ddranking")
    read = {file.stem: read_torch(file) for file in exported.glob("*.pt")}
    assert set(read) == {"images", "labels", "hard_labels", "lr"}
    np.testing.assert_array_equal(read["images"], np.asarray(distilled.images.rows)[[1, 3, 0, 2]].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(read["labels"], np.asarray(labels)[[1, 3, 0, 2]])
    assert read["hard_labels"].tolist() == [0, 0, 1, 1]
    assert read["hard_labels"].dtype == np.int64
    assert float(read["lr"]) == 0.25
    manifest = json.loads((exported / MANIFEST).read_text())
    assert "Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])" in manifest["evaluation"]
    np.testing.assert_array_equal(read_pairs(exported).targets, read["labels"])


def test_dd_ranking_is_handed_representations_under_their_name(source, tmp_path, torch_files):
    exported = export_distilled(source, tmp_path / "export", "ddranking")
    assert {file.name for file in exported.glob("*.pt")} == {"images.pt", "representations.pt"}
    assert "which a set of representations has none of" in json.loads((exported / MANIFEST).read_text())["evaluation"]
    np.testing.assert_array_equal(read_pairs(exported).targets, read_pairs(source).targets)
    np.testing.assert_array_equal(read_pairs(exported).images, read_pairs(source).images)


@pytest.mark.parametrize("kind", ["labels", "logits"])
def test_targets_that_are_no_representation_are_not_called_one(tmp_path, key, kind):
    layout = Layout((8, 6, 3), (8, 6, 3), target_kind=kind)
    distilled = DistilledSet(Plain(jax.random.normal(key, (4, 8, 6, 3))), Plain(jnp.eye(4)[None]), None, layout)
    source = save_distilled(tmp_path / "set", distilled, normalization=RGB)
    exported = export_distilled(source, tmp_path / "export", "npz")
    manifest = json.loads((exported / MANIFEST).read_text())
    assert manifest["target_kind"] == kind
    assert manifest["targets"] == {"meaning": TARGET_MEANINGS[kind]}
    assert "teacher" not in manifest["targets"]["meaning"]
    assert manifest["published_protocol"] is None
    assert [pairs.target_kind for pairs in (read_pairs(source), read_pairs(exported))] == [kind, kind]
    np.testing.assert_array_equal(read_pairs(exported).targets, np.eye(4))


def test_every_kind_of_targets_is_explained():
    assert tuple(TARGET_MEANINGS) == TARGET_KINDS


def test_every_view_is_explained_truly():
    image = np.arange(36.0, dtype=np.float32).reshape(6, 6, 1)
    view = lambda name: np.asarray(VIEWS[name](jnp.asarray(image[None])))[0]
    for turns, name in enumerate(("identity", "rot90", "rot180", "rot270")):
        np.testing.assert_array_equal(view(name), np.rot90(image, turns))
    # A quarter turn counter-clockwise brings the top right corner to the top left.
    assert view("rot90")[0, 0] == image[0, -1]
    assert view("hflip")[0, 0] == image[0, -1]
    assert view("vflip")[0, 0] == image[-1, 0]
    assert view("zoom_br").min() > image[2, 2]
    np.testing.assert_array_equal(view("shift_up")[:-2], image[2:])
    np.testing.assert_array_equal(view("shift_left")[:, :-2], image[:, 2:])
    assert not view("shift_right")[:, :2].any()
    np.testing.assert_allclose(view("dim"), 0.7 * image, rtol=1e-6)


def test_any_flipped_byte_is_noticed(source, tmp_path, fmt):
    exported = export_distilled(source, tmp_path / "export", fmt)
    for file in [file for file in sorted(exported.rglob("*")) if file.is_file() and file.name not in (MANIFEST, SUMS)][:3]:
        content = bytearray(file.read_bytes())
        for position in np.linspace(0, len(content) - 1, 7).astype(int):
            content[position] ^= 1
            file.write_bytes(content)
            refuses("is damaged: its sha256 is not the manifest's", read_pairs, exported)
            content[position] ^= 1
        file.write_bytes(content)
        read_pairs(exported)
    file.unlink()
    refuses(f"{file.name} is missing although manifest.json lists it", read_pairs, exported)


@pytest.mark.parametrize("fmt", ["npz", "png"])
def test_a_failed_export_never_looks_whole(source, tmp_path, key, monkeypatch, fmt):
    exported = export_distilled(source, tmp_path / "export", fmt)
    save_distilled(source, raw_set(jax.random.fold_in(key, 1)), normalization=RGB)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ssdd_jax.io.manifest.write_bytes", no_space)
        with pytest.raises(OSError, match="No space left"):
            export_distilled(source, exported, fmt)
    assert not (exported / MANIFEST).exists()
    refuses("no training pairs at .*, found ", read_pairs, exported)
    export_distilled(source, exported, fmt)
    np.testing.assert_array_equal(read_pairs(exported).images, read_pairs(source).images)


def test_an_export_replaces_an_earlier_one_and_nothing_else(source, tmp_path):
    exported = export_distilled(source, tmp_path / "export", "png")
    (exported / "notes.txt").write_text("mine")
    manifest = json.loads((exported / MANIFEST).read_text())
    manifest["files"] |= {"notes.txt": {}, f"../set/{TENSORS}": {}}
    (exported / MANIFEST).write_text(json.dumps(manifest))
    refuses("manifest.json is damaged", export_distilled, source, exported, "safetensors")
    (exported / SUMS).unlink()
    export_distilled(source, exported, "safetensors")
    assert {file.name for file in exported.rglob("*") if file.is_file()} == {MANIFEST, SUMS, "export.safetensors", "notes.txt"}
    load_distilled(source)


def test_what_cannot_be_exported_leaves_no_trace(source, tmp_path, key, monkeypatch):
    refuses(
        "format is 'safetensor', expected one of safetensors, npz, png, pt, ddranking, hf; did you mean 'safetensors'",
        export_to(tmp_path),
        source,
        "safetensor",
    )
    refuses("no distilled set at .*nowhere", export_to(tmp_path), tmp_path / "nowhere", "npz")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuses("--format=pt needs PyTorch: pip install torch, or use --format=npz", export_to(tmp_path), source, "pt")
    four = {"mean": [0.5] * 4, "std": [0.5] * 4}
    save_distilled(tmp_path / "four", raw_set(key, channels=4), normalization=four)
    refuses(
        "images have 4 channels, expected 1 .grey. or 3 .RGB.; use safetensors, npz or pt", export_to(tmp_path), tmp_path / "four", "png"
    )
    assert not (tmp_path / "export").exists()
    export_distilled(tmp_path / "four", tmp_path / "export", "npz")


def export_to(tmp_path):
    return lambda source, fmt: export_distilled(source, tmp_path / "export", fmt)


def test_a_destination_that_holds_something_else_is_refused(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    refuses("file is a file, expected a folder", export_distilled, source, tmp_path / "file", "npz")
    refuses("file is a file, expected a folder", export_distilled, source, tmp_path / "file" / "below", "npz")
    refuses("holds a manifest.json that is not an export's", export_distilled, source, source, "npz")
    load_distilled(source)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("normalization", "message"),
    [
        (None, "has normalization None, expected .'mean'"),
        ({"mean": [0.5] * 3}, "has normalization .*, expected .'mean'"),
        ({"mean": 0.5, "std": 0.5}, "expected 3 finite numbers each"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "expected 3 finite numbers each"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "the stds positive"),
        ({"mean": ["a"] * 3, "std": ["b"] * 3}, "has normalization .*, expected .'mean'"),
    ],
)
def test_a_set_without_its_statistics_is_refused(tmp_path, key, normalization, message):
    source = save_distilled(tmp_path / "set", raw_set(key), **({} if normalization is None else {"normalization": normalization}))
    refuses(message, export_to(tmp_path), source, "npz")
    refuses(message, read_pairs, source)
    assert not (tmp_path / "export").exists()


def foreign(folder, images, targets, **manifest):
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "targets.npy", targets)
    (folder / MANIFEST).write_text(json.dumps({"kind": "pairs", "normalization": RGB, **manifest}))
    return folder


def test_somebody_elses_set_is_read(tmp_path):
    random = np.random.RandomState(0)
    images, targets = random.normal(size=(6, 8, 8, 3)).astype(np.float32), random.normal(size=(6, 4))
    pairs = read_pairs(foreign(tmp_path / "floats", images, targets, name="theirs"))
    np.testing.assert_array_equal(pairs.images, images)
    np.testing.assert_array_equal(pairs.targets, targets.astype(np.float32))
    assert pairs.manifest["name"] == "theirs"
    pixels = random.randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    pairs = read_pairs(foreign(tmp_path / "pixels", pixels, targets))
    assert pairs.images.dtype == np.float32
    np.testing.assert_allclose(pairs.images, (pixels / 255 - RGB["mean"]) / RGB["std"], rtol=1e-5, atol=1e-5)


def test_somebody_elses_tensors_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    x_syn, y_syn = torch.randn(6, 3, 8, 8, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    torch.save(x_syn, tmp_path / "x_syn.pt")
    torch.save(y_syn, tmp_path / "y_syn.pt")
    (tmp_path / MANIFEST).write_text(json.dumps({"kind": "pairs", "normalization": RGB}))
    pairs = read_pairs(tmp_path)
    np.testing.assert_array_equal(pairs.images, x_syn.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(pairs.targets, y_syn.detach().numpy())


def test_sets_that_cannot_be_trained_on_are_refused(tmp_path):
    images, targets = np.zeros((6, 8, 8, 3), np.float32), np.zeros((6, 4), np.float32)
    bad = targets.copy()
    bad[0, 0] = np.nan
    wrong = {"files": {"images.npy": {"sha256": "0" * 64}}}
    for number, (message, *arrays, manifest) in enumerate(
        [
            (r"images .* shape \(8, 8, 3\), expected \(n, H, W, C\)", images[0], targets, {}),
            (r"images .* shape \(6, 8, 8, 3\) and targets \(5, 4\)", images, targets[:5], {}),
            (r"targets \(6,\), expected", images, targets[:, 0], {}),
            ("targets .* are float32, expected finite", images, bad, {}),
            ("images .* are int64, expected finite floating-point", images.astype(int), targets, {}),
            ("expected 3 finite numbers each", images, targets, {"normalization": GREY}),
            ("cannot read .*images.npy .ValueError.", np.array([[None]]), targets, {}),
            ("images.npy is damaged", images, targets, wrong),
            ("target_kind 'label', expected one of representation, labels, logits", images, targets, {"target_kind": "label"}),
        ]
    ):
        refuses(message, read_pairs, foreign(tmp_path / str(number), *arrays, **manifest))
    folder = foreign(tmp_path / "lacking", images, targets)
    (folder / "targets.npy").unlink()
    refuses("no targets.npy in .*, found images.npy, manifest.json; expected images.npy and targets.npy", read_pairs, folder)


def test_other_folders_are_named_for_what_they_are(source, tmp_path):
    refuses("no training pairs at .*nowhere, found nothing; expected the folder of a distilled set", read_pairs, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuses("found an empty folder", read_pairs, tmp_path / "empty")
    refuses("found a file", read_pairs, source / TENSORS)
    exported = export_distilled(source, tmp_path / "export", "npz")
    manifest = json.loads((exported / MANIFEST).read_text())
    (exported / SUMS).unlink()
    for change, message in [
        ({"kind": "model"}, "found a manifest.json of kind 'model'"),
        ({"format": 9}, "has format 9, expected 1"),
        ({"files": {}}, "lists no file of an export, found none"),
        ({"files": 3}, "has 'files' that are not a JSON object"),
    ]:
        (exported / MANIFEST).write_text(json.dumps({**manifest, **change}))
        refuses(message, read_pairs, exported)
    (exported / MANIFEST).write_text("{")
    refuses("manifest.json is damaged: it is not valid JSON", read_pairs, exported)


def test_the_pytorch_script_trains_on_an_export_without_this_library(tmp_path, key):
    pytest.importorskip("torch")
    source = save_distilled(tmp_path / "set", bases_set(key), normalization=GREY)
    exported = export_distilled(source, tmp_path / "export", "pt")
    random = np.random.RandomState(0)
    labels = random.randint(0, 2, 60)
    pixels = (100 * labels[:, None, None, None] + random.randint(0, 50, (60, 8, 8, 1))).astype(np.uint8)
    arrays = {"x_train": pixels[:40], "y_train": labels[:40], "x_test": pixels[40:], "y_test": labels[40:]}
    np.savez(tmp_path / "data.npz", **arrays, reprs_test=random.normal(size=(20, 6)).astype(np.float32))
    command = [sys.executable, EXPERIMENTS / "train_torch.py", exported, tmp_path / "data.npz"]
    settings = ["--updates", "10", "--probe-steps", "100", "--widths", "4,8", "--seeds", "0,1"]
    # -P and another working directory: nothing of this repository can be imported by accident.
    done = subprocess.run(
        [command[0], "-P", *command[1:], *settings],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    accuracy, error = done.stdout.splitlines()[-2:]
    assert float(accuracy.split()[1]) > 0.9
    assert error.startswith("repr_error: ")
    assert "ssdd_jax" not in {
        line.split()[1].split(".")[0]
        for line in (EXPERIMENTS / "train_torch.py").read_text().splitlines()
        if line.startswith(("import", "from"))
    }
