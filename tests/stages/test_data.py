"""From the data settings to the images of a run, and whole runs on data of every kind."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from quick import QUICK_TEACHER

from ssdd_jax.data.sources.idx import FASHION_MNIST_FOLDER, FILES
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.main import main
from ssdd_jax.progress import Display
from ssdd_jax.settings.digest import digest
from ssdd_jax.settings.spec import DataSpec
from ssdd_jax.stages.dataset import data_warnings, load_data


def draw(count, side=8, classes=3, channels=3, seed=0):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, side, side, channels), np.uint8), (np.arange(count) % classes).astype(np.int64)


@pytest.fixture
def npz(tmp_path):
    """A file with a labelled train and test split and unlabelled images."""
    (x_train, y_train), (x_test, y_test), (x_unlabelled, _) = draw(60), draw(30, seed=1), draw(90, seed=2)
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, x_unlabelled=x_unlabelled)
    return file


def test_splits_validation_and_limit_are_rows_of_the_source(npz):
    arrays, spec = np.load(npz), DataSpec(f"arrays:{npz}", validation=0.2)
    data, limited = load_data(spec, "test"), load_data(replace(spec, limit=10), "validation")
    assert (len(data.train_images), len(data.held_out_images), len(data.eval_images)) == (48, 12, 30)
    whole = np.concatenate([data.train_images, data.held_out_images])
    assert sorted(image.tobytes() for image in whole) == sorted(image.tobytes() for image in arrays["x_train"])
    assert {image.tobytes() for image in limited.train_images} < {image.tobytes() for image in data.train_images}
    assert (len(limited.train_images), len(set(limited.train_labels))) == (10, 3)
    np.testing.assert_array_equal(limited.eval_images, data.held_out_images)
    np.testing.assert_allclose(data.mean, (data.train_images / 255.0).mean((0, 1, 2)), rtol=1e-12)
    assert len({data.digest, limited.digest}) == 2


def test_images_on_disk_are_those_in_memory(npz):
    spec = DataSpec(f"arrays:{npz}", validation=0.2, limit=31)
    memory, disk = load_data(spec, "validation"), load_data(replace(spec, memory_gb=0.0), "validation")
    assert isinstance(memory.train_images, np.ndarray)
    assert not isinstance(disk.train_images, np.ndarray)
    for name in ("train_images", "held_out_images", "eval_images"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(disk, name)[:])
    for name in ("train_labels", "mean", "std"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(disk, name))
    assert memory.digest == disk.digest
    # The second time, the statistics are those that were kept.
    np.testing.assert_array_equal(load_data(replace(spec, memory_gb=0.0), "test").mean, disk.mean)


def test_the_unlabelled_split_is_distilled_where_it_is_asked_for(npz):
    data = load_data(DataSpec(f"arrays:{npz}", split="unlabelled", validation=0.0), "test")
    np.testing.assert_array_equal(data.train_images, np.load(npz)["x_unlabelled"])
    assert data.train_labels is None
    assert data.eval_labels is not None


def test_a_source_without_a_test_split_needs_to_be_told_its_share(tmp_path):
    x, y = draw(50)
    np.savez(tmp_path / "train.npz", x_train=x, y_train=y)
    spec = DataSpec(f"arrays:{tmp_path / 'train.npz'}", validation=0.25)
    with pytest.raises(InputError, match=r"has no test split to evaluate on; config\.data\.test=0\.2"):
        load_data(spec, "test")
    data = load_data(replace(spec, test=0.2), "test")
    parts = [data.train_images, data.held_out_images, data.eval_images]
    assert [len(part) for part in parts] == [30, 10, 10]
    assert sorted(image.tobytes() for image in np.concatenate(parts)) == sorted(image.tobytes() for image in x)


def test_splits_that_are_drawn_share_no_image_and_those_of_distinct_images_stay_as_they_were(tmp_path):
    x, y = draw(60)
    np.savez(tmp_path / "distinct.npz", x_train=x, y_train=y)
    copies = x.copy()
    copies[40:] = x[:20]
    copies[30:34] = 0
    np.savez(tmp_path / "copies.npz", x_train=copies, y_train=y)
    spec, lines = DataSpec(f"arrays:{tmp_path / 'distinct.npz'}", validation=0.2, test=0.25), []
    display = SimpleNamespace(print=lines.append, task=Display(quiet=True).task)
    data = load_data(spec, "test", display)
    held = np.sort(np.random.RandomState(1).permutation(60)[:15])
    np.testing.assert_array_equal(data.eval_images, x[held])
    kept = np.delete(np.arange(60), held)
    np.testing.assert_array_equal(data.held_out_images, x[kept][np.sort(np.random.RandomState(0).permutation(45)[:9])])
    assert lines == []
    before = data.digest
    data = load_data(replace(spec, source=f"arrays:{tmp_path / 'copies.npz'}"), "test", display)
    parts = [{image.tobytes() for image in part} for part in (data.train_images, data.held_out_images, data.eval_images)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert [len(data.train_images), len(data.held_out_images), len(data.eval_images)] == [36, 9, 15]
    assert lines[-1] == "copies: 23 of 60 train images repeat another one; equal images stay on one side of a split that is drawn"
    assert before != data.digest != digest(data.fingerprint, "train", 0.25, 0.2, 0)


def test_settings_of_transparency_and_overlap_reach_the_data_and_warnings_say_what_is_odd(tmp_path):
    for split, count in (("train", 30), ("test", 20)):
        for i in range(count):
            file = tmp_path / "f" / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            # Black on nothing.
            image = np.zeros((4, 4, 4), np.uint8)
            image[..., 3] = 8 * i if split == "train" else 0
            Image.fromarray(image).save(file)
    spec = DataSpec(f"folder:{tmp_path / 'f'}", validation=0.0)
    with pytest.raises(DataError, match=r"20 of 20 test images are train images too.*set config\.data\.overlap=allow"):
        load_data(spec, "test")
    data = load_data(replace(spec, overlap="allow"), "test")
    assert sorted(np.unique(data.train_images)) == sorted(255 - 8 * np.arange(30))
    assert data_warnings(spec, data) == [
        "f: 20 of 20 test images are one and the same; look at it, and leave it out if it is blank",
        "f: the test images have a standard deviation of 0: all of their pixels are alike",
        "f: the splits overlap, 20 of 20 test images are train images too",
    ]
    assert not load_data(replace(spec, overlap="allow", ground="black"), "test").train_images.any()


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    x, y = draw(50)
    np.savez(tmp_path / "train.npz", x_train=x, y_train=y)
    with pytest.raises(InputError, match=r"config\.data\.split is 'unlabelled', train has train"):
        load_data(DataSpec(f"arrays:{tmp_path / 'train.npz'}", split="unlabelled"), "test")


def test_unusable_data_ends_a_run_with_status_3_and_one_line(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for settings in (f"--config.data.source=folder:{tmp_path / 'images'}", "--config.data.source=cifar10", "--config.data.source=cifar9"):
        args = ["--config", "digits:smoke", "--workdir", str(tmp_path / "run"), settings, f"--config.data.data_dir={tmp_path}"]
        assert main(args) == 3
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not [file for file in (tmp_path / "run").rglob("*") if file.is_file()]


def smoke(workdir, *settings, task="all"):
    # One method, with few steps, bases that small images hold, and what else compiles quickly.
    # As many images in all runs, so that they share what they compile.
    shape = ["--config.methods.basis.image_bases=3", "--config.methods.basis.repr_bases=3", "--config.data.limit=54"]
    shape += ["--config.teacher.widths=(8,)", "--config.student.widths=(4,)", "--config.evaluation.students.convnet.widths=(4,)"]
    shape += ["--config.pool.size=1", *QUICK_TEACHER]
    args = ["--config", "arrays:smoke", "--workdir", str(workdir), f"--task={task}", "--config.only=basis"]
    assert main([*args, *shape, *settings]) == 0
    return {file.parent.parent.name: file.read_bytes() for file in workdir.glob("distilled/*/seed_0/distilled.safetensors")}


def test_a_run_on_unlabelled_images_is_read_on_the_labelled_ones(npz, tmp_path):
    settings = ["--config.data.split=unlabelled", "--config.data.validation=0.3", "--config.evaluation.split=validation"]
    settings += ["--config.evaluation.protocols=('linear',)", "--config.evaluation.controls=('teacher',)", "--config.teacher.steps=0"]
    smoke(tmp_path / "run", f"--config.data.source=arrays:{npz}", *settings)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"basis", "teacher"}
    assert all("linear" in row for row in rows)
    assert all("repr_error" in row for row in rows if row["method"] == "basis")


def test_a_run_without_any_label_has_the_error_alone(tmp_path):
    np.save(tmp_path / "images.npy", draw(80)[0])
    source = f"--config.data.source=arrays:{tmp_path / 'images.npy'}"
    settings = ["--config.data.test=0.2", "--config.evaluation.controls=('none','full')", "--config.teacher.steps=0"]
    smoke(tmp_path / "run", source, *settings)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert all("linear" not in row for row in rows)
    assert all(np.isfinite(row["repr_error"]) for row in rows if row["method"] != "none")


# The teacher reads from disk in one of them, and protocols in the other.
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("all", "outer.real_augment=crops outer.real_crops=2 evaluation.controls=('teacher','full')"),
        ("distill", "outer.real_augment=fresh teacher.steps=0"),
    ],
    ids=["crops", "fresh"],
)
def test_a_run_from_disk_has_the_bits_of_a_run_from_memory(npz, tmp_path, task, settings):
    settings = [f"--config.{setting}" for setting in (f"data.source=arrays:{npz}", *settings.split(" "))]
    memory = smoke(tmp_path / "memory", *settings, task=task)
    disk = smoke(tmp_path / "disk", *settings, "--config.data.memory_gb=0", task=task)
    assert memory == disk
    assert len(memory) == 1
    if task == "all":
        results = [json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("memory", "disk")]
        rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in found] for found in results]
        assert rows[0] == rows[1]
        assert {row["method"] for row in rows[0]} == {"basis", "teacher", "full"}
        assert all({"linear", "few_5", "knn"} <= set(row) for row in rows[0])


def write_png_folder(folder, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / str(label) / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file, compress_level=1)


def fashion_mnist(folder):
    """Fashion-MNIST, or where it is not installed images of its shape, as four plain arrays."""
    installed = Path(FASHION_MNIST_FOLDER)
    if not installed.is_dir():
        (x_train, y_train), (x_test, y_test) = (draw(count, 28, 10, 1, seed) for seed, count in enumerate((600, 100)))
        return x_train, y_train, x_test, y_test
    offsets = {"images": 16, "labels": 8}
    raw = [np.frombuffer(gzip.decompress((installed / f"{name}.gz").read_bytes()), np.uint8) for name in FILES]
    x_train, y_train, x_test, y_test = (part[offsets[name.split("-")[1]] :] for part, name in zip(raw, FILES, strict=True))
    return x_train.reshape(-1, 28, 28, 1), y_train.astype(int), x_test.reshape(-1, 28, 28, 1), y_test.astype(int)


def write_idx(folder, arrays):
    folder.mkdir()
    for name, array in zip(FILES, arrays, strict=True):
        array = array[..., 0] if array.ndim == 4 else array
        header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
        (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.chaos
def test_fashion_mnist_is_the_same_through_idx_a_folder_of_images_and_npz(tmp_path):
    """The same arrays, and the same first distillation step, bit for bit."""
    x_train, y_train, x_test, y_test = fashion_mnist(tmp_path)
    write_idx(tmp_path / "idx", (x_train, y_train, x_test, y_test))
    np.savez(tmp_path / "arrays.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    # A folder has its images class by class.
    write_png_folder(tmp_path / "folder" / "train", x_train, y_train)
    write_png_folder(tmp_path / "folder" / "test", x_test, y_test)
    order, order_test = np.argsort(y_train, kind="stable"), np.argsort(y_test, kind="stable")
    by_class = (x_train[order], y_train[order], x_test[order_test], y_test[order_test])
    write_idx(tmp_path / "idx_by_class", by_class)
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "by_class.npz", **dict(zip(names, by_class, strict=True)))
    load = lambda source: load_data(DataSpec(source, validation=0.0), "test")
    folder = load(f"folder:{tmp_path / 'folder'}")
    for source, expected in (("idx", (x_train, y_train, x_test, y_test)), ("idx_by_class", by_class)):
        same = [load(f"idx:{tmp_path / source}"), load(f"arrays:{tmp_path / ('arrays' if source == 'idx' else 'by_class')}.npz")]
        same += [folder] if source == "idx_by_class" else []
        for data in same:
            for name, array in zip(("train_images", "train_labels", "eval_images", "eval_labels"), expected, strict=True):
                np.testing.assert_array_equal(getattr(data, name), array)
        assert len({data.digest for data in same}) == 1
    settings = ["--config.outer.steps=1", "--config.methods.basis.steps=1", "--config.data.limit=512"]
    sources = (f"folder:{tmp_path / 'folder'}", f"arrays:{tmp_path / 'by_class.npz'}", f"idx:{tmp_path / 'idx_by_class'}")
    runs = [smoke(tmp_path / f"run{i}", f"--config.data.source={source}", *settings, task="distill") for i, source in enumerate(sources)]
    assert len(runs[0]) == 1
    assert runs[0] == runs[1] == runs[2]


def test_an_image_that_is_damaged_stops_a_run_unless_it_is_skipped(tmp_path, capsys):
    images, labels = draw(60, 8, 3, 1)
    write_png_folder(tmp_path / "f" / "train", images, labels)
    write_png_folder(tmp_path / "f" / "test", *draw(12, 8, 3, 1, seed=5))
    damaged = tmp_path / "f" / "train" / "0" / "00000.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1 of the first 60 images .*00000.png.*on_bad_image=skip"):
        load_data(DataSpec(f"folder:{tmp_path / 'f'}"), "test")
    data = load_data(DataSpec(f"folder:{tmp_path / 'f'}", on_bad_image="skip", validation=0.0), "test")
    assert len(data.train_images) == len(data.train_labels) == 59


def test_a_prepared_image_that_changed_is_noticed_before_it_is_trained_on(npz, tmp_path):
    spec = DataSpec(f"arrays:{npz}", cache=str(tmp_path))
    file = load_data(spec, "test").folder / "train_images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train_images in .* has changed since it was prepared; delete that folder"):
        load_data(spec, "test")
