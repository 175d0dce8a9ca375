"""Checking datasets: what is reported, the sheet of images, and the command line."""

import gzip
import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssdd_jax.data.__main__ as command_line
import ssdd_jax.data.check as check_module
from ssdd_jax.data import Dataset, Options, load_dataset
from ssdd_jax.data.check import check, contact_sheet
from ssdd_jax.data.dataset import StoredSplit
from ssdd_jax.data.published import PUBLISHED, format_statistics, statistics_warning
from ssdd_jax.data.source import Archive
from ssdd_jax.data.sources import NAMED
from ssdd_jax.data.sources.idx import FILES
from ssdd_jax.errors import InputError

WIDTH = 1600


def random_images(count, height=8, width=8, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, height, width, channels)).astype(np.uint8)


def write_arrays(file, train=None, test=None, names=("ant", "bee", "cat")):
    arrays = {}
    for split, images in (("train", random_images(30) if train is None else train), ("test", test)):
        if images is not None:
            arrays |= {f"x_{split}": images, f"y_{split}": np.arange(len(images)) % 3}
    np.savez(file, **arrays, class_names=np.array(names))
    return f"arrays:{file}"


def write_mnist(folder, count=20):
    """Write MNIST's four files with fewer images, gzipped, and return their checksums by name."""
    random = np.random.RandomState(0)
    folder.mkdir()
    checksums = {}
    for name in FILES:
        shape = (count, 28, 28) if "images" in name else (count,)
        content = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
        pixels = random.randint(0, 256, shape) if "images" in name else np.arange(count) % 10
        content = gzip.compress(content + pixels.astype(np.uint8).tobytes())
        (folder / f"{name}.gz").write_bytes(content)
        checksums[f"{name}.gz"] = hashlib.md5(content).hexdigest()
    return checksums


def write_folder(root, bad=()):
    for index, image in enumerate(random_images(30)):
        file = root / "train" / ("ant", "bee", "cat")[index // 10] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if index % 4 == 1 else image).save(file)
        if index in bad:
            file.write_bytes(b"")
    return f"folder:{root}"


# What is published.


def test_every_named_dataset_is_described():
    assert PUBLISHED.keys() == set(NAMED)
    for name, published in PUBLISHED.items():
        assert published.splits["train"] > published.splits["test"] or name == "stl10"
        assert len(published.mean) == len(published.std) == (0 if not published.mean else published.shape[2] if published.shape else 3)
        assert bool(published.mean) == bool(published.statistics_size)


def manifest(mean, std, shape=(50_000, 32, 32, 3), size=0, fit="crop", split="train"):
    return {"splits": {split: {"mean": mean, "std": std, "shape": list(shape)}}, "options": {"size": size, "fit": fit}}


def test_statistics_are_compared_with_the_published():
    mean, std = PUBLISHED["cifar10"].mean, PUBLISHED["cifar10"].std
    assert statistics_warning("cifar10", manifest(mean, std)) == ""
    assert statistics_warning("cifar10", manifest([mean[0], mean[1] + 0.019, mean[2]], std)) == ""
    for changed in (manifest([mean[0], mean[1] + 0.021, mean[2]], std), manifest(mean, [*std[:2], std[2] - 0.021])):
        line = statistics_warning("cifar10", changed)
        assert "\n" not in line
        assert line.startswith("cifar10: the 32x32 train images have mean .4914 ")
        assert "published for 32x32 are .4914 .4822 .4465 and .2470 .2435 .2616, more than 0.02 away; check" in line
    scaled = manifest([0.0] * 3, std, (50_000, 64, 64, 3), 64)
    assert "the 64x64 train images" in statistics_warning("cifar10", scaled)
    assert "changes with their size" in statistics_warning("cifar10", scaled)


def test_statistics_that_cannot_be_compared_are_not():
    zeros = ([0.0] * 3, [0.0] * 3)
    assert statistics_warning("cifar10", manifest(*zeros))
    assert statistics_warning("cifar10", manifest(*zeros, size=32, fit="pad"))  # nothing is padded
    assert statistics_warning("cifar10", manifest(*zeros, size=40, fit="pad")) == ""
    assert statistics_warning("cub200", manifest(*zeros, size=64, fit="pad")) == ""
    assert statistics_warning("cub200", manifest(*zeros, size=64, fit="crop"))
    assert statistics_warning("cifar10", manifest([0.0], [0.0])) == ""  # grey
    assert statistics_warning("cifar10", manifest(*zeros, split="unlabelled")) == ""
    assert statistics_warning("stl10", manifest(*zeros)) == ""  # none are published
    assert statistics_warning("folder:cifar10", manifest(*zeros)) == ""
    assert format_statistics([0.5, 1.0, 0.00004]) == ".5000 1.0000 .0000"


# What is found.


def test_a_dataset_as_published_has_no_warnings(tmp_path):
    report = check("digits", "", Options(), tmp_path)
    assert report.title == "digits: 10 classes, stored as 8x8x1"
    assert [row[:4] for row in report.rows] == [("train", "1,438", "1,438", "139 to 146"), ("test", "359", "359", "35 to 37")]
    assert report.warnings == report.problems == ()
    assert report.folder.parent == tmp_path
    assert any(line.startswith(f"prepared in {report.folder}: 124 kB, intact; ") for line in report.lines)
    assert any(line.startswith("fingerprint ") for line in report.lines)


def test_differences_from_the_published_are_warnings(tmp_path, monkeypatch):
    checksums = write_mnist(tmp_path / "mnist")
    report = check("mnist", tmp_path, Options(), tmp_path / "cache")
    assert [row[:4] for row in report.rows] == [("train", "20", "60,000", "2"), ("test", "20", "10,000", "2")]
    assert report.problems == ()
    assert len(report.warnings) == 4
    text = "\n".join(report.warnings)
    assert "mnist: the train split has 20 images, the published one 60,000" in text
    assert "mnist: the test split has 20 images, the published one 10,000" in text
    assert "the 28x28 train images have mean .4" in text
    assert "md5 not as published: " + f"{FILES[0]}.gz ({checksums[f'{FILES[0]}.gz']}, published f68b3c2dcbeaaa9fbdd348bbdeb94873)" in text
    assert "they were repacked (as Debian does), otherwise they are other files" in text
    assert "published mean .1307 and std .3081 of 28x28 images" in report.lines
    # One file as published, one that nothing is known of.
    known = [Archive(file, md5=md5 if "labels" in file else "0") for file, md5 in checksums.items() if "t10k-images" not in file]
    monkeypatch.setattr(check_module, "archives", lambda name: known)
    report = check("mnist", tmp_path, Options(32, "pad"), tmp_path / "cache")
    assert f"md5 as published: {FILES[1]}.gz, {FILES[3]}.gz" in report.lines
    assert f"no md5 published: {FILES[2]}.gz" in report.lines
    assert "published mean .1307 and std .3081 of 28x28 images, which padding changes" in report.lines
    assert [warning for warning in report.warnings if "md5 not as published: train-images" in warning and "train-labels" not in warning]
    assert not any("mean" in warning for warning in report.warnings)


def test_unknown_and_missing_splits_and_classes_are_warnings(tmp_path, monkeypatch):
    text = write_arrays(tmp_path / "a.npz", names=("ant", "bee", "cat", "dog"))
    report = check(text, "", Options(), tmp_path / "cache")
    assert report.rows[0][:3] == ("train", "30", "–")
    assert report.rows[0][3] == "0 to 10"
    assert report.warnings == (f"{text}: 1 of 4 classes have no train image, e.g. 'dog'",)
    monkeypatch.setattr(check_module, "PUBLISHED", {text: PUBLISHED["stl10"]})
    report = check(text, "", Options(), tmp_path / "cache")
    assert [warning.removeprefix(f"{text}: ") for warning in report.warnings[:4]] == [
        "the train split has 30 images, the published one 5,000",
        "the test split has 0 images, the published one 8,000",
        "the unlabelled split has 0 images, the published one 100,000",
        "4 classes, 10 are published",
    ]


def test_conversions_skipped_images_and_shared_images_are_listed(tmp_path):
    text = write_folder(tmp_path / "set", bad=range(3, 10))
    report = check(text, "", Options(channels=3, on_bad_image="skip"), tmp_path / "cache")
    row = dict(zip(check_module._COLUMNS, report.rows[0], strict=True))
    assert (row["images"], row["a class has"], row["converted"], row["skipped"], row["shared"]) == ("23", "3 to 10", "6", "7", "–")
    lines = "\n".join(report.lines)
    assert "train: converted 6 L to RGB" in lines
    assert "train: skipped 'train/ant/003.png' (empty file), " in lines
    assert "'train/ant/007.png' (empty file) and 2 more" in lines
    assert "008.png" not in lines
    test = random_images(200, seed=1)
    test[5] = random_images(30)[7]
    report = check(write_arrays(tmp_path / "a.npz", test=test), "", Options(), tmp_path / "cache")
    assert "test: 1 images are train images too" in report.lines
    assert report.rows[1][-1] == "1"


def warned(file, train, test=None, options=None, labels=None):
    """Return the warnings about arrays, which loading prints too."""
    text = write_arrays(file, train, test)
    if labels is not None:
        np.savez(file, x_train=train, y_train=labels)
    report = check(text, "", options or Options(), file.parent / "cache")
    lines = []
    load_dataset(text, options=options, cache=file.parent / "cache", display=types.SimpleNamespace(print=lines.append))
    assert lines == [f"warning: {line.replace(text, file.stem)}" for line in report.warnings]
    return [line.removeprefix(f"{text}: ") for line in report.warnings]


def test_an_image_that_is_much_of_a_split_is_a_warning(tmp_path):
    images = random_images(200)
    images[:2] = 0
    assert warned(tmp_path / "two.npz", images) == []
    images[2] = 0
    assert warned(tmp_path / "three.npz", images) == [
        "3 of 200 train images are one and the same; look at it, and leave it out if it is blank"
    ]


def test_pixels_that_are_all_alike_are_a_warning(tmp_path):
    images = random_images(30)
    images[..., 1] = 7
    assert warned(tmp_path / "channel.npz", images) == [
        "the train images have a standard deviation of 0 in channel 1: all of their pixels are alike"
    ]
    copies, alike = warned(tmp_path / "all.npz", np.zeros((30, 8, 8, 3), np.uint8))
    assert copies.startswith("30 of 30 train images are one and the same")
    assert alike == "the train images have a standard deviation of 0: all of their pixels are alike"


def test_labels_from_1_leave_class_0_empty_which_is_a_warning(tmp_path):
    labels = np.arange(30) % 3
    assert warned(tmp_path / "from0.npz", random_images(30), labels=labels) == []
    assert warned(tmp_path / "from1.npz", random_images(30), labels=labels + 1) == [
        "1 of 4 classes have no train image, e.g. '0'; labels count from 0"
    ]


def test_an_overlap_that_is_allowed_is_a_warning(tmp_path):
    train, test = random_images(200), random_images(60, seed=1)
    test[:2] = train[:2]
    assert warned(tmp_path / "a.npz", train, test, Options(overlap="allow")) == [
        "the splits overlap, 2 of 60 test images are train images too"
    ]


def test_a_damaged_array_is_a_problem(tmp_path):
    text = write_arrays(tmp_path / "a.npz")
    report = check(text, "", Options(), tmp_path / "cache")
    file = report.folder / "train_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    report = check(text, "", Options(), tmp_path / "cache")
    assert len(report.problems) == 1
    assert report.problems[0].startswith(
        f"the prepared train_images in '{report.folder}' has changed since it was prepared; delete the folder"
    )
    assert any(", damaged; " in line for line in report.lines)


# The sheet.


def make_dataset(images, num_classes=3, **splits):
    labels = np.arange(len(images)) % num_classes
    names = tuple(f"class {number}" for number in range(num_classes))
    return Dataset("toy", {"train": StoredSplit(images, labels.astype(np.int32)), **splits}, names, "", Path())


def sheet_of(dataset, folder):
    contact_sheet(dataset, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width <= WIDTH
        return np.asarray(sheet.convert("RGB"))


def places(sheet, color):
    """Return the (top, left, height, width) of the rectangle of a colour."""
    rows, columns = np.nonzero((sheet == color).all(-1))
    top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == height * width
    return top, left, height, width


def test_every_image_of_the_sheet_is_whole_and_in_its_class_row(tmp_path):
    images = np.zeros((12, 8, 8, 3), np.uint8)
    images[...] = np.arange(12)[:, None, None, None] * (20, 3, 7) + (1, 200, 50)
    sheet = sheet_of(make_dataset(images), tmp_path)
    found = [places(sheet, image[0, 0]) for image in images]
    assert {place[2:] for place in found} == {(64, 64)}  # enlarged eightfold
    for number, (top, left, _, _) in enumerate(found):
        assert top == found[number % 3][0]
        assert left == found[number // 3 * 3][1]
    assert found[0][0] + 64 < found[1][0]
    assert found[0][1] + 64 < found[3][1]


def test_pixels_are_enlarged_as_they_are(tmp_path):
    colour, grey = random_images(2), random_images(2, channels=1, seed=1)
    dataset = make_dataset(colour, 2, test=StoredSplit(grey, np.array([0, 1], np.int32)))
    sheet = sheet_of(dataset, tmp_path)
    for image in (*colour, *np.repeat(grey, 3, -1)):
        enlarged = image.repeat(8, 0).repeat(8, 1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (64, 64), (0, 1)).transpose(0, 1, 3, 4, 2)
        tops, lefts = np.nonzero((windows[:, :, 0, 0] == enlarged[0, 0]).all(-1) & (windows[:, :, 60, 31] == enlarged[60, 31]).all(-1))
        assert any((windows[top, left] == enlarged).all() for top, left in zip(tops, lefts, strict=True))


@pytest.mark.parametrize(("size", "expected"), [(8, 64), (28, 56), (32, 64), (48, 48), (96, 96), (160, 160), (300, 160)])
def test_cells_are_of_a_visible_size(tmp_path, size, expected):
    image = np.full((1, size, size, 3), (10, 20, 30), np.uint8)
    sheet = sheet_of(Dataset("toy", {"unlabelled": StoredSplit(image, None)}, (), "", Path()), tmp_path)
    assert places(sheet, (10, 20, 30))[2:] == (expected, expected)


def test_a_sheet_of_many_classes_or_images_is_bounded(tmp_path):
    many = sheet_of(make_dataset(random_images(990, seed=2), 99), tmp_path)
    assert many.shape[0] < 20 * 68 + 80
    unlabelled = Dataset("toy", {"unlabelled": StoredSplit(random_images(500, 32, 32), None)}, (), "", Path())
    sheet = sheet_of(unlabelled, tmp_path)
    assert 4 * 68 < sheet.shape[0] < 4 * 68 + 80
    assert 16 * 68 < sheet.shape[1] < 16 * 68 + 40
    wide = Dataset("toy", {"unlabelled": StoredSplit(random_images(70, 20, 900), None)}, (), "", Path())
    assert sheet_of(wide, tmp_path).shape[1] <= WIDTH


def test_odd_names_and_shapes_do_not_break_the_sheet(tmp_path):
    names = ("a name that never ends " * 10, "häßlich 日本語 \udcff", "\ntwo\nlines", "")
    labels = (np.arange(60) % 4).astype(np.int32)
    splits = {
        "train": StoredSplit(random_images(60, 3, 50, 1), labels),
        "unlabelled": StoredSplit(random_images(3, 200, 300), None),
        "test": StoredSplit(random_images(3, 9, 9, 2), np.array([0, 2, 2], np.int32)),
    }
    sheet_of(Dataset("x" * 500, splits, names, "", Path()), tmp_path)


def test_the_same_dataset_gives_the_same_sheet_and_only_whole_ones(tmp_path, monkeypatch):
    dataset = make_dataset(random_images(30))
    for name in ("a.png", "new/folder/b.png"):
        contact_sheet(dataset, tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert (tmp_path / "new" / "folder" / "b.png").read_bytes() == content
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "new"]
    with pytest.raises(InputError, match=r"cannot write the sheet '.*/a.png/c.png': .*; choose another file"):
        contact_sheet(dataset, tmp_path / "a.png" / "c.png")


# The command line.


def run(capsys, *args):
    status = command_line.main(list(map(str, args)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_check_prints_a_table_and_writes_a_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    status, out, err = run(capsys, "check", "digits", "--cache", tmp_path, "--sheet", sheet)
    assert (status, err) == (0, "")
    assert "digits: 10 classes, stored as 8x8x1" in out
    assert "1,438" in out
    assert "warning:" not in out
    with Image.open(sheet) as image:
        assert image.width > 1000
    # Again, from what is prepared, in another size.
    status, out, _ = run(capsys, "check", "digits", "--cache", tmp_path, "--size", "16", "--fit", "resize", "--channels", "3")
    assert status == 0
    assert "stored as 16x16x3" in out


def test_differences_are_warnings_and_damage_is_an_error(tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    args = ("check", "mnist", "--data_dir", tmp_path, "--cache", tmp_path / "cache")
    status, out, err = run(capsys, *args)
    assert (status, err) == (0, "")
    assert len([line for line in out.splitlines() if line.startswith("warning: mnist: ")]) == 4
    (file,) = (tmp_path / "cache").glob("*/test_images.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    status, _, err = run(capsys, *args)
    assert status == 3
    assert err.startswith("error: the prepared test_images in ")


def test_prepare_prints_the_folder(tmp_path, capsys):
    text = write_folder(tmp_path / "set", bad=[3])
    (tmp_path / "set" / "readme.txt").write_text("")
    status, out, err = run(capsys, "prepare", text, "--cache", tmp_path / "cache")
    assert (status, out) == (3, "")
    assert "'train/ant/003.png' (empty file); repair or remove them, or set --on_bad_image=skip" in err
    status, out, err = run(capsys, "prepare", text, "--cache", tmp_path / "cache", "--on_bad_image=skip")
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "cache").iterdir()
    notes = ["left out: .txt files (1)", "train: converted 8 grey to RGB"]
    assert out.splitlines() == [*notes, "train: 29 images, 1 skipped", f"prepared in {folder}"]
    # Once.
    status, out, err = run(capsys, "prepare", text, "--cache", tmp_path / "cache", "--on_bad_image=skip")
    assert out.splitlines() == ["train: 29 images, 1 skipped", f"prepared in {folder}"]


def test_download_of_what_needs_none(tmp_path, capsys):
    status, out, err = run(capsys, "download", "digits", "--data_dir", tmp_path)
    assert (status, out, err) == (0, "digits: nothing to download\n", "")


@pytest.mark.parametrize(
    ("args", "status", "match"),
    [
        ([], 2, "the following arguments are required"),
        (["chek", "digits"], 2, "invalid choice: 'chek'"),
        (["check"], 2, "the following arguments are required: SOURCE"),
        (["check", "digits", "--siz", "8"], 2, "unrecognized arguments: --siz 8"),
        (["check", "digits", "--size", "-1"], 2, "-1 is negative, expected 0 or more"),
        (["check", "digits", "--size", "big"], 2, "argument --size: 'big' is not a whole number"),
        (["check", "digits", "--fit", "stretch"], 2, "invalid choice: 'stretch'"),
        (["check", "digits", "--channels", "2"], 2, "invalid choice: 2"),
        (["check", "digits", "--ground", "pink"], 2, "--ground is 'pink', expected white, black or #RRGGBB"),
        (["check", "digits", "--overlap", "yes"], 2, "invalid choice: 'yes'"),
        (["prepare", "digits", "--sheet", "a.png"], 2, "unrecognized arguments: --sheet"),
        (["download", "digits", "--size", "8"], 2, "unrecognized arguments: --size"),
        (["check", "digit"], 3, "unknown data source 'digit'.*did you mean 'digits'"),
        (["check", "digits:8"], 3, "'digits:8' has an argument, expected none"),
        (["check", "folder:/none"], 3, "'/none' does not exist, expected a folder"),
        (["check", "digits", "--size", "4", "--fit", "pad"], 3, "8x8 pixels, larger than 4x4; choose another --size or --fit"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, args, status, match):
    monkeypatch.setenv("SSDD_JAX_CACHE", str(tmp_path))
    found, out, err = run(capsys, *args)
    assert (found, out) == (status, "")
    assert re.match(rf"error: .*({match}).*\n$", err), err
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(capsys):
    with pytest.raises(InputError):
        run(capsys, "check", "digit", "--debug")


@pytest.mark.parametrize("args", [["--help"], ["check", "--help"], ["download", "--help"]])
def test_help_lists_the_sources(capsys, args):
    with pytest.raises(SystemExit) as caught:
        command_line.main(args)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMED)
    assert "folder:ROOT" in out


def test_nothing_of_it_imports_jax(tmp_path):
    code = """
        import importlib, pkgutil, sys
        import ssdd_jax.data
        from ssdd_jax.data import sources
        for package in (ssdd_jax.data, sources):
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")
        from ssdd_jax.data.__main__ import main
        status = main(["check", "digits", "--cache", sys.argv[1], "--sheet", sys.argv[1] + "/sheet.png"])
        heavy = {"jax", "jaxlib", "flax", "ml_collections", "tensorflow", "torch", "tensorflow_datasets", "datasets"} & set(sys.modules)
        sys.exit(f"imported: {heavy}" if heavy else status)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path):
    text, cache = write_folder(tmp_path / "set"), tmp_path / "cache"
    # What the processes beside that one do: they say that they are there; the first has much to do, the other soon waits for more.
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
        import os, pathlib, time
        from ssdd_jax.data import splits
        real = splits._process
        def process(file, chunk, *args):
            pathlib.Path(os.environ["MARKS"], str(os.getpid())).touch()
            time.sleep(0.1 if chunk[0].index else 8)
            return real(file, chunk, *args)
        """)
    )
    (tmp_path / "run.py").write_text(
        textwrap.dedent("""
        import signal, sys
        import slow
        from ssdd_jax.data import splits, workers
        from ssdd_jax.data.__main__ import main
        if __name__ == "__main__":
            # A shell's background job, as these tests may be, starts with Ctrl-C ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            splits.PARALLEL_FROM, splits.CHUNK_IMAGES, workers.num_workers, splits._process = 1, 15, lambda: 2, slow.process
            sys.exit(main(sys.argv[1:]))
        """)
    )
    marks = tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, tmp_path / "run.py", "prepare", text, "--cache", cache]
    environment = {**os.environ, "MARKS": str(marks), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)
        assert list(cache.glob(".set-*.tmp"))
        # As a terminal does: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert list(cache.iterdir()) == []
