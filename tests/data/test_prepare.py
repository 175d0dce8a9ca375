"""Preparing datasets: what is stored, when it is stored again, what is refused, and what a crash leaves."""

import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data import Options, Source, Split, channel_statistics, load_dataset, open_prepared, open_source, prepare, workers
from ssdd_jax.data import splits as splits_module
from ssdd_jax.data.decode import decode_image, fit_image
from ssdd_jax.data.prepare import damaged_arrays, read_prepared_manifest
from ssdd_jax.data.source import EncodedImage, EncodedImages, PixelBlocks
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.files import json_digest, locked

# The package has a function of this name, which `import ... as` would give.
prepare_module = importlib.import_module("ssdd_jax.data.prepare")
NAMES = ("ant", "bee", "cat")


def random_images(count, height=8, width=8, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, height, width, channels)).astype(np.uint8)


def random_labels(count, seed=0):
    return np.sort(np.arange(count) % len(NAMES)).astype(np.int32)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "PNG")
    return content.getvalue()


def array_source(train=None, test=None, name="toy", **splits):
    """A source of arrays; without arguments, 30 train and 12 test images of 8x8x3."""
    train = random_images(30) if train is None else train
    splits = {"train": train, "test": random_images(12, seed=1) if test is None else test, **splits}
    return Source(name, {split: Split(images, random_labels(len(images))) for split, images in splits.items()}, NAMES, ())


def encoded(contents, order=None, channels=0):
    names = [f"{index:03d}.png" for index in range(len(contents))]
    order = range(len(contents)) if order is None else order
    return EncodedImages(len(contents), lambda: (EncodedImage(i, names[i], contents[i]) for i in order), channels)


def encoded_source(contents, **changes):
    return Source("files", {"train": Split(encoded(contents, **changes), random_labels(len(contents)))}, NAMES, ())


def write_folder(root, split, images):
    for index, (image, label) in enumerate(zip(images, random_labels(len(images)), strict=True)):
        file = root / split / NAMES[label] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return f"folder:{root}"


def stored(folder):
    return {name: (np.array(split.images), split.labels) for name, split in open_prepared(folder).splits.items()}


def state(folder):
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def refused(match, source, cache, options=None):
    """Assert that a source is refused in one line, leaving nothing, and return the line."""
    before = set(cache.iterdir()) if cache.exists() else set()
    with pytest.raises(DataError, match=match) as caught:
        prepare(source, options or Options(), cache)
    assert "\n" not in str(caught.value)
    assert (set(cache.iterdir()) if cache.exists() else set()) == before
    return str(caught.value)


def run_python(code, *args):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )


# What is stored.


def test_arrays_blocks_and_files_of_the_same_pixels_are_the_same_dataset(tmp_path):
    train, test = random_images(30), random_images(12, seed=1)
    blocks = lambda images, sizes: PixelBlocks(images.shape, lambda: iter(np.split(images, np.cumsum(sizes))))
    as_splits = lambda *images: {name: Split(of, random_labels(len(of))) for name, of in zip(("train", "test"), images, strict=True)}
    shuffled = np.random.RandomState(0).permutation(30)
    sources = [
        array_source(train, test),
        Source("blocks", as_splits(blocks(train, [1, 10, 0, 19]), blocks(test, [])), NAMES, ()),
        Source("files", as_splits(encoded(list(map(png, train)), shuffled), encoded(list(map(png, test)))), NAMES, ()),
        (write_folder(tmp_path / "set", "train", train), open_source(write_folder(tmp_path / "set", "test", test)))[1],
    ]
    folders = [prepare(source, Options(), tmp_path / "cache") for source in sources]
    assert len(set(folders)) == len(sources)
    assert len({open_prepared(folder).fingerprint for folder in folders}) == 1
    for folder in folders:
        assert not damaged_arrays(folder)
        for name, images in (("train", train), ("test", test)):
            found, labels = stored(folder)[name]
            np.testing.assert_array_equal(found, images)
            np.testing.assert_array_equal(labels, random_labels(len(images)))
            assert (found.dtype, labels.dtype) == (np.uint8, np.int32)
    listed = [
        [line.split("/")[-1].split()[-1] for line in (folder / "train_files.sha256").read_text().splitlines()] for folder in folders[2:]
    ]
    assert listed == [[f"{index:03d}.png" for index in range(30)]] * 2
    dataset = open_prepared(folders[0])
    assert (dataset.name, dataset.class_names, dataset.folder) == ("toy", NAMES, folders[0])
    assert isinstance(dataset.splits["train"].images, np.memmap)


@pytest.mark.parametrize("change", ["a pixel", "a label", "the order", "the class count"])
def test_the_fingerprint_changes_with_the_content(tmp_path, change):
    before = array_source()
    images, labels, names = before.splits["train"].images.copy(), random_labels(30), NAMES
    if change == "a pixel":
        images[29, 7, 7, 2] ^= 1
    elif change == "a label":
        labels[29] = 0
    elif change == "the order":
        images[[0, 1]] = images[[1, 0]]
    else:
        names = (*NAMES, "dog")
    after = replace(before, splits={**before.splits, "train": Split(images, labels)}, class_names=names)
    prints = [open_prepared(prepare(source, Options(), tmp_path / name)).fingerprint for source, name in ((before, "a"), (after, "b"))]
    assert prints[0] != prints[1]
    assert all(len(digest) == 64 for digest in prints)


def test_the_manifest_says_what_a_dataset_is_made_from(tmp_path):
    images = random_images(12)
    source = write_folder(tmp_path / "set", "train", images)
    np.savez(tmp_path / "arrays.npz", x_train=images, y_train=random_labels(12), class_names=np.array(NAMES))
    for text, files in ((source, []), (f"arrays:{tmp_path / 'arrays.npz'}", [tmp_path / "arrays.npz"])):
        folder = prepare(open_source(text), Options(channels=1), tmp_path / "cache")
        manifest = read_prepared_manifest(folder)
        assert manifest["options"] == {
            "size": 0,
            "fit": "crop",
            "channels": 1,
            "on_bad_image": "stop",
            "ground": "white",
            "overlap": "refuse",
        }
        assert manifest["class_names"] == list(NAMES)
        assert manifest["files"] == [
            {"name": str(file), "bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in files
        ]
        about = manifest["splits"]["train"]
        assert about["shape"] == [12, 8, 8, 1]
        mean, std = channel_statistics(open_prepared(folder).splits["train"].images)
        np.testing.assert_array_equal((about["mean"], about["std"]), (mean, std))
        assert about["skipped"] == []
        assert about["converted"] == ({"RGB to L": 12} if not files else {})
    assert read_prepared_manifest(folder.parent / "other") is None


def test_the_list_of_image_files_is_in_the_format_of_sha256sum(tmp_path):
    root = tmp_path / "set"
    folder = prepare(open_source(write_folder(root, "train", random_images(12))), Options(), tmp_path / "cache")
    lines = (folder / "train_files.sha256").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(str(file.relative_to(root)) for file in root.rglob("*.png"))
    done = subprocess.run(["sha256sum", "--check", folder / "train_files.sha256"], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (prepare(array_source(), Options(), tmp_path / "cache") / "train_files.sha256").exists()


OPTIONS = [
    Options(5),
    Options(5, "resize"),
    Options(12, "pad"),
    Options(5, channels=1),
    Options(0, channels=1),
    Options(8, "crop"),
    Options(16, "resize"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_images_are_converted_one_by_one(tmp_path, options):
    images = random_images(6, 8, 11)
    contents = [png(image) for image in images]
    expected = [decode_image(content, options.channels)[0] for content in contents]
    expected = np.stack([fit_image(image, options.size, options.fit) if options.size else image for image in expected])
    for source in (array_source(images, random_images(9, 8, 11, seed=1)), encoded_source(contents)):
        np.testing.assert_array_equal(stored(prepare(source, options, tmp_path))["train"][0], expected)


def test_images_of_several_sizes_become_one(tmp_path):
    images = [random_images(1, height, width, seed=height)[0] for height, width in ((9, 5), (5, 9), (30, 31), (7, 7), (4, 4), (8, 6))]
    for fit in ("crop", "resize"):
        found, _ = stored(prepare(encoded_source(list(map(png, images))), Options(7, fit), tmp_path))["train"]
        np.testing.assert_array_equal(found, [fit_image(image, 7, fit) for image in images])


def test_grey_files_among_colour_become_colour_and_a_source_may_settle_the_channels(tmp_path):
    colour, grey = random_images(2), random_images(4, channels=1)
    contents = [png(colour[0]), png(grey[0]), png(colour[1]), *map(png, grey[1:])]
    folder = prepare(encoded_source(contents), Options(), tmp_path)
    found, _ = stored(folder)["train"]
    np.testing.assert_array_equal(found[[0, 2]], colour)
    np.testing.assert_array_equal(found[[1, 3, 4, 5]], np.repeat(grey, 3, -1))
    assert read_prepared_manifest(folder)["splits"]["train"]["converted"] == {"grey to RGB": 4}
    assert stored(prepare(encoded_source(contents, channels=1), Options(), tmp_path / "1"))["train"][0].shape == (6, 8, 8, 1)
    assert stored(prepare(encoded_source(contents, channels=1), Options(channels=3), tmp_path / "3"))["train"][0].shape == (6, 8, 8, 3)


def drawing(alpha):
    """A transparent PNG: black, as opaque as `alpha` (H, W) says."""
    return np.dstack([np.zeros((*alpha.shape, 3), np.uint8), alpha])


def test_transparent_images_are_laid_on_the_ground_and_counted(tmp_path, capsys):
    alphas = random_images(6, channels=1)[..., 0]
    contents = [*map(png, map(drawing, alphas)), png(random_images(1)[0])]
    white, black = (prepare(encoded_source(contents), Options(ground=ground), tmp_path) for ground in ("white", "black"))
    assert capsys.readouterr().out.splitlines() == [
        "train: converted 6 transparent RGBA to RGB on white",
        "train: converted 6 transparent RGBA to RGB on black",
        "train: 5 of 7 images repeat another one",
    ]
    np.testing.assert_array_equal(stored(white)["train"][0][:6], np.repeat(255 - alphas[..., None], 3, -1))
    np.testing.assert_array_equal(stored(black)["train"][0][:6], 0)
    assert len({open_prepared(folder).fingerprint for folder in (white, black)}) == 2
    # Where nothing is transparent, nothing depends on the ground.
    opaque = [prepare(encoded_source(contents[6:] * 3), Options(ground=ground), tmp_path / "1") for ground in ("white", "#102030")]
    assert len({open_prepared(folder).fingerprint for folder in opaque}) == 1
    # Four channels of an array may be anything.
    bands = random_images(9, channels=4)
    np.testing.assert_array_equal(stored(prepare(array_source(bands, bands[:0:-1] ^ 1), Options(), tmp_path))["train"][0], bands)
    with pytest.raises(InputError, match=r"config\.data\.ground is 'grey', expected white, black or #RRGGBB"):
        prepare(array_source(), Options(ground="grey"), tmp_path)


def test_equal_images_are_grouped_without_changing_the_fingerprint(tmp_path):
    images = random_images(30)
    images[[7, 20]], images[11] = images[3], images[4]
    folder = prepare(array_source(images), Options(), tmp_path)
    groups = np.arange(30)
    groups[[7, 20]], groups[11] = 3, 4
    dataset, about = open_prepared(folder), read_prepared_manifest(folder)["splits"]
    np.testing.assert_array_equal(dataset.splits["train"].groups, groups)
    assert dataset.splits["test"].groups is None
    assert [(about[name]["repeated"], about[name]["most_copies"]) for name in ("train", "test")] == [(3, 3), (0, 1)]
    content = {name: [split["shape"], {part: split["sha256"][part] for part in ("images", "labels")}] for name, split in about.items()}
    assert dataset.fingerprint == json_digest([content, len(NAMES)])
    content = (folder / "train_groups.npy").read_bytes()
    (folder / "train_groups.npy").write_bytes(content[:-1] + b"\1")
    assert damaged_arrays(folder) == ["train_groups"]
    (folder / "train_groups.npy").unlink()
    with pytest.raises(DataError, match=r"prepared train split in .* delete the folder"):
        open_prepared(folder)


def test_splits_without_labels(tmp_path):
    splits = {"unlabelled": Split(random_images(20), None), "test": Split(random_images(6, seed=1), random_labels(6))}
    folder = prepare(Source("toy", splits, NAMES, ()), Options(), tmp_path)
    assert not (folder / "unlabelled_labels.npy").exists()
    found = stored(folder)
    assert found["unlabelled"][1] is None
    np.testing.assert_array_equal(found["unlabelled"][0], splits["unlabelled"].images)
    np.testing.assert_array_equal(found["test"][1], random_labels(6))


def test_a_name_with_odd_characters_makes_one_folder(tmp_path):
    for name in ("org/set", "a[b]*", "..", "häuser"):
        folder = prepare(array_source(name=name), Options(), tmp_path / "cache")
        assert folder.parent == tmp_path / "cache"
        assert open_prepared(folder).name == name
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("letter", ["x", "図", "é"])
def test_names_as_long_as_a_file_system_allows_stay_apart(tmp_path, letter):
    name = letter * (255 // len(letter.encode()))
    folders = [prepare(array_source(name=name + end), Options(), tmp_path) for end in ("", "1", "2")]
    assert len(set(folders)) == 3
    assert all(len(folder.name.encode()) <= 120 for folder in folders)
    assert open_prepared(folders[0]).name == name


# When it is stored again.


def test_nothing_is_done_again_while_nothing_changes(tmp_path, monkeypatch):
    write_splits, done = prepare_module.write_splits, []
    monkeypatch.setattr(prepare_module, "write_splits", lambda *args: done.append(0) or write_splits(*args))
    text = write_folder(tmp_path / "set", "train", random_images(30))
    for open_it in (lambda: open_source(text), array_source):
        folder = prepare(open_it(), Options(), tmp_path / "cache")
        before = state(folder)
        assert prepare(open_it(), Options(), tmp_path / "cache") == folder
        assert state(folder) == before
        other = prepare(open_it(), Options(4), tmp_path / "cache")
        assert other != folder
        assert state(folder) == before
    assert len(done) == 4


def test_a_changed_file_is_noticed(tmp_path):
    root, images = tmp_path / "set", random_images(30)
    text = write_folder(root, "train", images)
    write_folder(root, "test", random_images(6, seed=1))
    folder = prepare(open_source(text), Options(), tmp_path / "cache")
    kept = open_prepared(folder)
    file = root / "train" / "ant" / "003.png"
    content = file.read_bytes()
    # Pillow decodes it as before: it is the file's time that tells.
    os.utime(file, ns=(0, 12345))
    before = state(folder)
    assert prepare(open_source(text), Options(), tmp_path / "cache") == folder
    assert state(folder) != before
    assert open_prepared(folder).fingerprint == kept.fingerprint
    file.write_bytes(png(255 - images[3]))
    assert prepare(open_source(text), Options(), tmp_path / "cache") == folder
    np.testing.assert_array_equal(stored(folder)["train"][0][3], 255 - images[3])
    # Whoever has the old arrays open still reads them.
    np.testing.assert_array_equal(kept.splits["train"].images, images)
    file.unlink()
    assert len(stored(prepare(open_source(text), Options(), tmp_path / "cache"))["train"][0]) == 29
    file.write_bytes(content)
    file.rename(root / "train" / "bee" / "003.png")
    assert stored(prepare(open_source(text), Options(), tmp_path / "cache"))["train"][1].tolist() == [0] * 9 + [1] * 11 + [2] * 10
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]


@pytest.mark.parametrize("change", ["images", "labels", "class_names"])
def test_changed_arrays_are_noticed(tmp_path, change):
    before = array_source()
    folder = prepare(before, Options(), tmp_path)
    images, labels = before.splits["train"].images.copy(), random_labels(30)
    images[4, 0, 0, 0] ^= change == "images"
    labels[4] ^= change == "labels"
    names = ("ant", "bee", "cow") if change == "class_names" else NAMES
    after = replace(before, splits={**before.splits, "train": Split(images, labels)}, class_names=names)
    assert prepare(after, Options(), tmp_path) == folder
    np.testing.assert_array_equal(stored(folder)["train"][0], images)
    np.testing.assert_array_equal(stored(folder)["train"][1], labels)
    assert open_prepared(folder).class_names == names


def test_load_dataset_opens_what_is_prepared(tmp_path):
    text, images = write_folder(tmp_path / "set", "train", random_images(6)), random_images(6)
    dataset = load_dataset(text, options=Options(4), cache=tmp_path / "cache")
    assert dataset.splits["train"].images.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(load_dataset(text, cache=tmp_path / "cache").splits["train"].images, images)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SSDD_JAX_CACHE", raising=False)
    assert prepare(array_source(), Options()).parent == tmp_path / "xdg" / "ssdd_jax"
    monkeypatch.setenv("SSDD_JAX_CACHE", str(tmp_path / "own"))
    assert prepare(array_source(), Options()).parent == tmp_path / "own"


# In several processes.


@pytest.fixture
def pools(monkeypatch):
    """Two processes from the first image on, in chunks of eight; the pools that were started."""
    started = []

    class Pool(workers.ProcessPoolExecutor):
        def __init__(self, *args, **kwargs):
            started.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(splits_module, "PARALLEL_FROM", 1)
    monkeypatch.setattr(splits_module, "CHUNK_IMAGES", 8)
    monkeypatch.setattr(workers, "num_workers", lambda: 2)
    return started


def test_several_processes_store_the_same_bytes(tmp_path, pools, monkeypatch):
    root = tmp_path / "set"
    text = write_folder(root, "train", [random_images(1, 5 + i % 4, 9, seed=i)[0] for i in range(40)])
    write_folder(root, "test", random_images(9, seed=99))
    (root / "train" / "bee" / "017.png").write_bytes(b"no image")
    (root / "train" / "cat" / "039.png").write_bytes(png(random_images(1, channels=1)[0]))
    options = Options(6, on_bad_image="skip")
    sources = (open_source(text), array_source(random_images(40, 9, 9), random_images(9, 9, 9, seed=1)))
    parallel = [prepare(source, options, tmp_path / "parallel") for source in sources]
    assert len(pools) == 2
    monkeypatch.setattr(splits_module, "PARALLEL_FROM", 10**6)
    serial = [prepare(source, options, tmp_path / "serial") for source in sources]
    assert len(pools) == 2
    for one, other in zip(parallel, serial, strict=True):
        assert sorted(state(one)) == sorted(state(other))
        for name in state(one):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    about = read_prepared_manifest(serial[0])["splits"]["train"]
    assert len(about["skipped"]) == 1
    np.testing.assert_array_equal((about["mean"], about["std"]), channel_statistics(open_prepared(serial[0]).splits["train"].images))


def test_errors_of_other_processes_arrive(tmp_path, pools):
    contents = [*map(png, random_images(30)), *[b"no image"] * 10]
    assert "'030.png' (not a PNG" in refused("5 of the first|10 of the first", encoded_source(contents), tmp_path)
    assert len(pools) == 1


def _die(*args):
    os._exit(1)


def test_a_process_that_dies_is_one_line(tmp_path, pools, monkeypatch):
    monkeypatch.setattr(splits_module, "_process", _die)
    source = encoded_source(list(map(png, random_images(3))))
    refused("cannot prepare files: a process that decodes images ended unexpectedly", source, tmp_path)
    assert len(pools) == 1


def test_a_program_on_standard_input_prepares_in_one_process_and_says_so(tmp_path):
    text, cache = write_folder(tmp_path / "set", "train", random_images(30)), tmp_path / "cache"
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from ssdd_jax.data import load_dataset, splits, workers
        splits.PARALLEL_FROM, workers.num_workers = 1, lambda: 2
        print(load_dataset(sys.argv[1], cache=Path(sys.argv[2])).splits["train"].images.shape)
    """)
    done = subprocess.run([sys.executable, "-", text, cache], input=program, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    said, shape = done.stdout.splitlines()
    assert said == "preparing in one process: others could not import the program from <stdin>; run it from a file to use 2"
    assert shape == "(30, 8, 8, 3)"


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ({"__file__": "<stdin>"}, "<stdin>"),
        ({"__file__": "/gone/program.py"}, "/gone/program.py"),
        ({"__file__": __file__}, ""),
        ({}, ""),  # python -c, a notebook
        ({"__file__": "/gone/program.py", "__spec__": object()}, ""),  # python -m
    ],
)
def test_whether_processes_can_import_the_program(monkeypatch, main, expected):
    module = types.ModuleType("__main__")
    for name, value in main.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "__main__", module)
    assert workers._unimportable_program() == expected


# What a crash leaves.

KILLED = """
    import importlib, os, signal, sys
    from pathlib import Path
    from ssdd_jax.data import Options, open_source, prepare

    from ssdd_jax.data import splits as splits_module
    prepare_module = importlib.import_module("ssdd_jax.data.prepare")

    text, cache, moment = sys.argv[1:]
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if moment == "reading":
        process, done = splits_module._process, []
        splits_module.CHUNK_IMAGES = 4
        splits_module._process = lambda *args: kill() if len(done) == 3 else done.append(0) or process(*args)
    elif moment == "writing the manifest":
        prepare_module._put_in_place = lambda *args: kill()
    else:
        rename, done = Path.rename, []
        Path.rename = lambda *args: kill() if len(done) == 1 else done.append(0) or rename(*args)
    prepare(open_source(text), Options(), Path(cache))
"""


@pytest.fixture
def all_old(monkeypatch):
    """Take every temporary folder for one that could have been locked by now."""
    monkeypatch.setattr(prepare_module, "YOUNG_S", -1.0)


@pytest.mark.usefixtures("all_old")
@pytest.mark.parametrize("moment", ["reading", "writing the manifest", "replacing"])
def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_cleans_up(tmp_path, moment):
    root, cache, images = tmp_path / "set", tmp_path / "cache", random_images(30)
    text = write_folder(root, "train", images)
    if moment == "replacing":
        folder = prepare(open_source(text), Options(), cache)
        (root / "train" / "ant" / "000.png").write_bytes(png(255 - images[0]))
        images[0] = 255 - images[0]
        # The first rename, onto the old folder, fails; the second moves that aside.
        code = KILLED.replace("len(done) == 1", "len(done) == 2")
    else:
        code = KILLED
    assert run_python(code, text, cache, moment).returncode == -9
    names = [entry.name for entry in cache.iterdir()]
    assert names
    assert all(name.startswith(".set-") and name.endswith(".tmp") for name in names)
    folder = prepare(open_source(text), Options(), cache)
    np.testing.assert_array_equal(stored(folder)["train"][0], images)
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_what_a_living_process_has_half_done_is_left_alone(tmp_path, monkeypatch):
    folder = prepare(array_source(), Options(), tmp_path)
    names = [f".{folder.name}.held.tmp", f".{folder.name}.gone.tmp", ".other-0123456789ab.gone.tmp", ".mine.tmp"]
    held, gone, of_other_options, foreign = (tmp_path / name for name in names)
    for path in (held, gone, of_other_options, foreign):
        path.mkdir()
    shutil.rmtree(folder)
    prepare(array_source(), Options(), tmp_path)
    # Just made, each of them may be about to be locked.
    assert gone.exists()
    monkeypatch.setattr(prepare_module, "YOUNG_S", -1.0)
    shutil.rmtree(folder)
    with locked(held):
        prepare(array_source(), Options(), tmp_path)
    assert [path.exists() for path in (held, gone, of_other_options, foreign)] == [True, False, False, True]


def test_two_runs_at_once_agree(tmp_path):
    text, cache = write_folder(tmp_path / "set", "train", random_images(12)), tmp_path / "cache"
    source, states = open_source(text), []
    images = source.splits["train"].images

    def read():
        # While this process reads for the second time (the first is for its stamp), another one prepares all of it.
        reads.append(0)
        if len(reads) == 2:
            code = "import sys; from ssdd_jax.data import *; from pathlib import Path; load_dataset(sys.argv[1], cache=Path(sys.argv[2]))"
            assert run_python(code, text, cache).returncode == 0
            states.extend(state(entry) for entry in cache.iterdir() if not entry.name.startswith("."))
        return images.read()

    reads = []
    folder = prepare(replace(source, splits={"train": Split(replace(images, read=read), source.splits["train"].labels)}), Options(), cache)
    assert states == [state(folder)]
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


# Images that cannot be used.


def bad_folder(root):
    """30 images, of which 7 cannot be used: 002, 003, 011 to 014 and 029."""
    text = write_folder(root, "train", random_images(30))
    reasons = {2: b"", 3: b"text", 11: None, 12: b"x", 13: b"x", 14: b"x", 29: None}
    for index, content in reasons.items():
        file = root / "train" / NAMES[index // 10] / f"{index:03d}.png"
        file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    return text, sorted(reasons)


def test_bad_images_stop_and_the_first_five_are_listed(tmp_path):
    text, _ = bad_folder(tmp_path / "set")
    line = refused("set train: 7 of the first 30 images", open_source(text), tmp_path / "cache")
    listed = "'train/ant/002.png' (empty file), 'train/ant/003.png' (not a PNG, "
    assert listed in line
    assert "'train/bee/011.png' (truncated)" in line
    assert "'train/bee/013.png' (not a PNG" in line
    assert "014.png" not in line
    assert line.endswith("and 2 more; repair or remove them, or set config.data.on_bad_image=skip")


def test_reading_stops_with_the_chunk_of_the_fifth_bad_image(tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "CHUNK_IMAGES", 5)
    monkeypatch.setattr(workers, "num_workers", lambda: 1)
    text, _ = bad_folder(tmp_path / "set")
    refused("set train: 6 of the first 15 images .of 30. cannot be used: 'train/ant/002.png'", open_source(text), tmp_path / "cache")


def test_bad_images_are_skipped_and_recorded(tmp_path):
    text, bad = bad_folder(tmp_path / "set")
    folder = prepare(open_source(text), Options(on_bad_image="skip"), tmp_path / "cache")
    keep = np.delete(np.arange(30), bad)
    images, labels = stored(folder)["train"]
    np.testing.assert_array_equal(images, random_images(30)[keep])
    np.testing.assert_array_equal(labels, random_labels(30)[keep])
    about = read_prepared_manifest(folder)["splits"]["train"]
    assert about["shape"] == [23, 8, 8, 3]
    assert [Path(image["name"]).stem for image in about["skipped"]] == [f"{index:03d}" for index in bad]
    assert about["skipped"][0] == {"name": "train/ant/002.png", "reason": "empty file"}
    np.testing.assert_array_equal((about["mean"], about["std"]), channel_statistics(images))
    assert not damaged_arrays(folder)
    assert not list(folder.glob("*.kept"))


def test_skipping_does_not_change_what_is_the_same_in_both_splits(tmp_path):
    train, test = list(map(png, random_images(30))), list(map(png, random_images(200, seed=1)))
    train[3], test[0], test[1] = b"", b"", train[4]
    splits = {"train": Split(encoded(train), random_labels(30)), "test": Split(encoded(test), random_labels(200))}
    folder = prepare(Source("files", splits, NAMES, ()), Options(on_bad_image="skip"), tmp_path)
    assert read_prepared_manifest(folder)["splits"]["test"]["also_in_train"] == 1


def test_nothing_but_bad_images_is_refused(tmp_path):
    for on_bad_image in ("stop", "skip"):
        options = Options(on_bad_image=on_bad_image)
        refused("cannot be used: '000.png' .empty file., ", encoded_source([b""] * 12), tmp_path, options)
    splits = {"train": Split(random_images(3), None), "test": Split(encoded([b""] * 3), None)}
    refused("toy test: 3 of the first 3 images", Source("toy", splits, (), ()), tmp_path, Options(on_bad_image="skip"))


def test_sizes_and_colours_that_differ_are_refused(tmp_path):
    small, large, grey = png(random_images(1)[0]), png(random_images(1, 9, 8)[0]), png(random_images(1, channels=1)[0])
    line = refused("'002.png' .9x8 pixels, the first image has 8x8; config.data.size", encoded_source([small, small, large]), tmp_path)
    assert "1 of the first 3 images" in line
    refused("'001.png' .in colour, the first image is grey; config.data.channels=3", encoded_source([grey, small, small]), tmp_path)
    prepare(encoded_source([grey, small, small]), Options(channels=3), tmp_path / "3")
    refused("'001.png' .9x8 pixels, larger than 8x8", encoded_source([small, large, small]), tmp_path / "pad", Options(8, "pad"))


def test_a_file_that_vanishes_is_named(tmp_path):
    root = tmp_path / "set"
    text = write_folder(root, "train", random_images(30))
    source = open_source(text)
    (root / "train" / "bee" / "011.png").unlink()
    refused(r"set: cannot read '.*/train/bee/011.png' \(No such file", source, tmp_path / "cache")
    # After the stamp was taken: it is a bad image like others.
    source, reads = open_source(text), []
    images = source.splits["train"].images

    def read():
        reads.append(0)
        if len(reads) == 2:
            (root / "train" / "cat" / "025.png").unlink()
        return images.read()

    source = replace(source, splits={"train": replace(source.splits["train"], images=replace(images, read=read))})
    refused("1 of the first 29 images .of 29. cannot be used: 'train/cat/025.png' .No such file", source, tmp_path / "cache")


def test_a_source_that_yields_too_few_images_is_refused(tmp_path):
    contents = list(map(png, random_images(6)))
    short = replace(encoded(contents), count=7)
    refused("toy train: 6 images were read, expected 7", Source("toy", {"train": Split(short, None)}, (), ()), tmp_path)
    block = PixelBlocks((7, 8, 8, 3), lambda: iter([random_images(6)]))
    refused("toy train: 6 images were read, expected 7", Source("toy", {"train": Split(block, None)}, (), ()), tmp_path)


# Arrays and labels that do not fit together.


def test_arrays_that_do_not_fit_the_options_or_each_other_are_refused(tmp_path):
    refused("toy train: 8x8 pixels, larger than 4x4; choose another config.data.size", array_source(), tmp_path, Options(4, "pad"))
    two = array_source(random_images(6, channels=2), random_images(6, channels=2, seed=1))
    refused("toy train has 2 channels and 3 are asked for, expected 1 or 3", two, tmp_path, Options(channels=3))
    assert stored(prepare(two, Options(), tmp_path / "2"))["train"][0].shape == (6, 8, 8, 2)
    refused("toy: test images are 9x9x3, those of the first split 8x8x3", array_source(test=random_images(6, 9, 9)), tmp_path)
    refused("toy: test images are 8x8x3, those of the first split 8x8x1", array_source(random_images(6, channels=1)), tmp_path)
    np.testing.assert_array_equal(
        stored(prepare(array_source(test=random_images(6, channels=1)), Options(), tmp_path / "1"))["test"][0],
        np.repeat(random_images(6, channels=1), 3, -1),
    )


def split_of(labels, count=30):
    return {"train": Split(random_images(count), np.array(labels, np.int32))}


@pytest.mark.parametrize(
    ("splits", "match"),
    [
        (split_of([*range(3), *[3] * 27]), r"toy: train labels span 0\.\.3, expected 0\.\.2 for 3 class names"),
        (split_of([-1] * 29 + [0]), r"toy: train labels span -1\.\.0, expected 0\.\.2"),
        (split_of([1] * 30), "toy: train labels are all of one class, 'bee', expected two or more"),
        (split_of(range(3)), "toy: train labels: 3 for 30 images, expected one each"),
        ({"train": Split(random_images(0), None)}, "toy: the train split is empty, expected at least one image"),
        ({"train": Split(encoded([]), None)}, "toy: the train split is empty"),
        ({**split_of(random_labels(30)), "test": Split(random_images(0), np.zeros(0, np.int32))}, "toy: the test split is empty"),
        ({"test": Split(random_images(3), None)}, "toy has no train split .it has test., expected one"),
        ({}, "toy has no train split .it has nothing., expected one"),
    ],
)
def test_labels_and_splits_that_do_not_fit_are_refused(tmp_path, splits, match):
    refused(match, Source("toy", splits, NAMES, ()), tmp_path)


def test_test_labels_may_be_of_one_class(tmp_path):
    splits = {**split_of(random_labels(30)), "test": Split(random_images(3, seed=1), np.ones(3, np.int32))}
    assert stored(prepare(Source("toy", splits, NAMES, ()), Options(), tmp_path))["test"][1].tolist() == [1, 1, 1]


def test_splits_may_share_a_few_images(tmp_path):
    train, test = random_images(30), random_images(100, seed=1)
    test[7] = train[3]
    folder = prepare(array_source(train, test, unlabelled=random_images(9, seed=2)), Options(), tmp_path)
    about = read_prepared_manifest(folder)["splits"]["test"]
    assert (about["also_in_train"], about["also_in_unlabelled"]) == (1, 0)
    test[8] = train[4]
    line = refused("toy: the splits overlap, 2 of 100 test images are train images too", array_source(train, test), tmp_path / "2")
    source = array_source(random_images(9, seed=2), test, unlabelled=train)
    refused("2 of 100 test images are unlabelled images too", source, tmp_path / "3")
    assert line.endswith("or set config.data.overlap=allow")
    allowed = prepare(array_source(train, test), Options(overlap="allow"), tmp_path / "2")
    assert read_prepared_manifest(allowed)["splits"]["test"]["also_in_train"] == 2
    # Of other sizes they may be the same once they are scaled.
    refused("the splits overlap", array_source(np.repeat(train, 2, 1), np.repeat(test, 2, 1)), tmp_path / "4", Options(8))


# Disks.


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    line = refused(r"cannot prepare toy in .*: \d+\.\d MB are needed and 0\.0 MB are free", array_source(), tmp_path / "cache")
    assert line.endswith("free space or set SSDD_JAX_CACHE")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot prepare toy in '.*/file/cache': Not a directory; choose a folder that") as caught:
        prepare(array_source(), Options(), tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "test_images.npy"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "another shape", "no array"])
def test_a_prepared_dataset_that_is_not_whole_is_refused(tmp_path, name, damage):
    folder = prepare(array_source(), Options(), tmp_path)
    file = folder / name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "another shape":
        np.save(file, np.load(file)[:-1])
    else:
        file.write_bytes(b"no array")
    with pytest.raises(DataError, match=f"prepared {name.partition('_')[0]} split in .* delete the folder") as caught:
        open_prepared(folder)
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
    prepare(array_source(), Options(), tmp_path)
    open_prepared(folder)


def test_a_flipped_byte_is_found_and_a_folder_without_manifest_prepared_again(tmp_path):
    folder = prepare(array_source(), Options(), tmp_path)
    assert damaged_arrays(folder) == []
    for name in ("train_images", "test_labels"):
        content = bytearray((folder / f"{name}.npy").read_bytes())
        content[-1] ^= 16
        (folder / f"{name}.npy").write_bytes(content)
    assert sorted(damaged_arrays(folder)) == ["test_labels", "train_images"]
    for content in ("", "{", "[]", json.dumps({"format": 0})):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"no prepared dataset in .*, expected manifest.json there; prepare it again"):
            open_prepared(folder)
        assert prepare(array_source(), Options(), tmp_path) == folder
        assert damaged_arrays(folder) == []


def test_what_is_left_after_skipping_must_have_two_classes(tmp_path):
    contents = [png(image) for image in random_images(4)]
    contents[1] = contents[3] = b"no image"
    source = Source("files", {"train": Split(encoded(contents), np.array([0, 1, 0, 1], np.int32))}, ("ant", "bee"), ())
    with pytest.raises(DataError, match="without the 2 images that cannot be used, one class is left"):
        prepare(source, Options(on_bad_image="skip"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_can_be_read_again_is_no_longer_skipped(tmp_path):
    text = write_folder(tmp_path / "set", "train", random_images(6))
    file = next((tmp_path / "set").rglob("*.png"))
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    skip = Options(on_bad_image="skip")
    assert len(stored(prepare(open_source(text), skip, tmp_path / "cache"))["train"][0]) == 5
    # The same size and the same time of modification.
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(stored(prepare(open_source(text), skip, tmp_path / "cache"))["train"][0]) == 6
