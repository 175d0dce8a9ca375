import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data import Options, prepare
from ssdd_jax.data.decode import _FORMATS, decode_image
from ssdd_jax.data.sources.folder import EXTENSIONS, open_folder
from ssdd_jax.errors import DataError


def write(root, *names):
    """Write one-coloured images: the n-th of a call is of level n."""
    for level, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), level).save(file, "PNG" if file.suffix.lower() not in (".webp", ".jpg", ".jfif") else None)


def read(source, split):
    return [image.name for image in source.splits[split].images.read()]


def labelled(source, split):
    return [(name, source.class_names[label]) for name, label in zip(read(source, split), source.splits[split].labels, strict=True)]


def refusal(root, argument=None):
    with pytest.raises(DataError) as caught:
        open_folder(str(root) if argument is None else argument, Path())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split_list(root, *rows):
    with (root / "split.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream).writerows([("file", "split"), *rows])


@pytest.mark.parametrize("test", ["test", "val", "validation", "valid", "testing", "Test"])
def test_split_folders_give_both_splits_with_labels(tmp_path, test):
    write(tmp_path, "train/dog/2.png", "train/dog/10.png", "train/cat/a.png", "train/cat/deep/er/0.png", f"{test}/dog/x.png")
    source = open_folder(str(tmp_path), Path())
    assert source.name == tmp_path.name
    assert source.class_names == ("cat", "dog")
    assert source.root == tmp_path
    assert source.files == ()
    assert list(source.splits) == ["train", "test"]
    assert labelled(source, "train") == [
        ("train/cat/a.png", "cat"),
        ("train/cat/deep/er/0.png", "cat"),
        ("train/dog/10.png", "dog"),
        ("train/dog/2.png", "dog"),
    ]
    assert labelled(source, "test") == [(f"{test}/dog/x.png", "dog")]
    assert source.splits["train"].labels.dtype == np.int32
    levels = [decode_image(image.read_bytes())[0].max() for image in source.splits["train"].images.read()]
    assert levels == [2, 3, 1, 0]
    assert [image.index for image in source.splits["train"].images.read()] == [0, 1, 2, 3]
    assert len(source.splits["train"].images) == 4


def test_beside_a_test_folder_the_validation_folder_is_not_used(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "test/a/3.png")
    source = open_folder(str(tmp_path), Path())
    assert read(source, "test") == ["test/a/3.png"]
    assert list(source.splits) == ["train", "test"]


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_unlabelled_images_have_no_classes(tmp_path, name):
    write(tmp_path, f"{name}/1.png", f"{name}/deeper/2.png")
    source = open_folder(str(tmp_path), Path())
    assert source.class_names == ()
    assert list(source.splits) == ["unlabelled"]
    assert source.splits["unlabelled"].labels is None
    assert read(source, "unlabelled") == [f"{name}/1.png", f"{name}/deeper/2.png"]
    write(tmp_path, "train/a/1.png", "train/b/1.png")
    source = open_folder(str(tmp_path), Path())
    assert source.class_names == ("a", "b")
    assert list(source.splits) == ["train", "unlabelled"]


def test_class_folders_alone_are_the_train_split(tmp_path):
    write(tmp_path, "b/1.png", "a/2.png", "a b/3.png")
    source = open_folder(str(tmp_path), Path())
    assert source.class_names == ("a", "a b", "b")
    assert list(source.splits) == ["train"]
    assert labelled(source, "train") == [("a/2.png", "a"), ("a b/3.png", "a b"), ("b/1.png", "b")]


def test_flat_images_are_a_train_split_without_labels(tmp_path):
    write(tmp_path, "2.png", "1.png")
    source = open_folder(str(tmp_path), Path())
    assert source.class_names == ()
    assert source.splits["train"].labels is None
    assert read(source, "train") == ["1.png", "2.png"]


def test_every_extension_in_either_case_and_nothing_else(tmp_path):
    names = [f"a/{number}.{extension}" for number, extension in enumerate((*EXTENSIONS, *map(str.upper, EXTENSIONS)))]
    ignored = ["a/.hidden.png", "a/png", "a/notes.txt", "a/1.png.bak", ".thumbnails/1.png", "a/.deep/2.png"]
    write(tmp_path, *names, "b/1.png")
    for name in ignored:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = open_folder(str(tmp_path), Path())
    assert sorted(read(source, "train")) == sorted([*names, "b/1.png"])
    assert source.left_out == {"hidden files": 1, "hidden folders": 2, ".txt files": 1, ".bak files": 1, "other files": 1}


def test_the_extensions_are_those_of_the_formats_that_are_decoded():
    known = {extension for extension, form in Image.registered_extensions().items() if form in _FORMATS}
    assert {f".{extension}" for extension in EXTENSIONS} == known - {".pfm"}


CLUTTER = ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", ".ipynb_checkpoints", "System Volume Information", "@__thumb"]


@pytest.mark.parametrize("above", ["", "train", "train/a", "train/a/deeper"])
def test_what_systems_put_into_folders_is_left_out_and_counted(tmp_path, above):
    names = ["train/a/1.png", "train/a/deeper/2.png", "train/b/1.png", "test/a/3.png", "test/b/3.png"]
    write(tmp_path, *names)
    clean = open_folder(str(tmp_path), Path())
    added = [*(f"{folder}/x/1.png" for folder in CLUTTER), "._1.png", ".DS_Store", "Thumbs.db"]
    write(tmp_path / above, *added)
    source = open_folder(str(tmp_path), Path())
    for split in ("train", "test"):
        assert read(source, split) == read(clean, split)
    assert source.class_names == ("a", "b")
    assert clean.left_out == {}
    assert source.left_out == {
        **{f"folders {folder!r}": 1 for folder in CLUTTER if not folder.startswith(".")},
        "hidden folders": 1,
        "hidden files": 2,
        "files 'Thumbs.db'": 1,
    }


def test_images_in_no_split_are_counted(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "test/a/3.png", "test/b/3.png")
    assert open_folder(str(tmp_path), Path()).left_out == {"images in no split": 1}


def test_flat_test_images_do_not_hide_a_labelled_validation_folder(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png", "test/3.png", "test/4.png")
    source = open_folder(str(tmp_path), Path())
    assert labelled(source, "test") == [("val/a/2.png", "a"), ("val/b/2.png", "b")]
    assert source.left_out == {"images in no split": 2}
    # A test folder that is empty, or flat where there is no other, is still refused.
    write(tmp_path.with_name("flat"), "train/a/1.png", "train/b/1.png", "test/3.png")
    assert "'test/3.png' outside class folders" in refusal(tmp_path.with_name("flat"))
    for file in (tmp_path / "test").iterdir():
        file.unlink()
    assert "no image in 'test'" in refusal(tmp_path)


def test_a_split_list_divides_class_folders(tmp_path):
    write(tmp_path, "b/1.png", "b/2.png", "a/1.png", "a/2.png", "a/not listed.png", "loose.png")
    split_list(tmp_path, ("b/1.png", "test"), ("./b/2.png", "train"), ("a/1.png", "train"), (), ("loose.png", "unlabelled"))
    source = open_folder(str(tmp_path), Path())
    assert source.files == (tmp_path / "split.csv",)
    assert source.class_names == ("a", "b")
    assert labelled(source, "train") == [("a/1.png", "a"), ("b/2.png", "b")]
    assert labelled(source, "test") == [("b/1.png", "b")]
    assert read(source, "unlabelled") == ["loose.png"]
    assert source.splits["unlabelled"].labels is None


def test_a_split_list_divides_flat_images(tmp_path):
    write(tmp_path, "1.png", "2.png", "3.png")
    split_list(tmp_path, ("3.png", "train"), ("1.png", "test"))
    source = open_folder(str(tmp_path), Path())
    assert (read(source, "train"), read(source, "test")) == (["3.png"], ["1.png"])
    assert source.splits["test"].labels is None


def test_a_split_list_with_a_signature_is_read(tmp_path):
    write(tmp_path, "1.png")
    (tmp_path / "split.csv").write_bytes("file,split\r\n1.png,train\r\n".encode("utf-8-sig"))
    assert read(open_folder(str(tmp_path), Path()), "train") == ["1.png"]


def test_class_folders_may_be_named_like_splits_with_a_split_list(tmp_path):
    write(tmp_path, "train/1.png", "plane/1.png")
    assert "'plane' next to the split folders 'train'" in refusal(tmp_path)
    split_list(tmp_path, ("train/1.png", "train"), ("plane/1.png", "train"))
    assert open_folder(str(tmp_path), Path()).class_names == ("plane", "train")


def test_names_with_spaces_newlines_and_other_letters(tmp_path):
    root = tmp_path / "line\nbreak é"
    names = ["a b/ü 1.png", 'c\nd/x,\n"y".png', "дом/1\r\n.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"c\nd/\xff.png"))
    write(root, *names)
    assert sorted(read(open_folder(str(root), Path()), "train")) == sorted(names)
    split_list(root, *((name, "train") for name in names))
    source = open_folder(str(root), Path())
    assert sorted(read(source, "train")) == sorted(names)
    assert all(Path(image.content).is_file() for image in source.splits["train"].images.read())
    (root / "split.csv").unlink()
    write(root, "stray\n.png")
    assert repr("stray\n.png")[1:-1] in refusal(root)


def test_relative_paths_and_tilde(tmp_path, monkeypatch):
    write(tmp_path / "images", "1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for argument in ("images", "./images/", "~/images"):
        source = open_folder(argument, Path())
        assert source.root == tmp_path / "images"
        assert source.name == "images"


def test_what_is_no_folder_is_refused(tmp_path):
    assert "folder:ROOT" in refusal(tmp_path, "")
    assert "does not exist" in refusal(tmp_path / "none")
    write(tmp_path, "1.png")
    assert "is a file" in refusal(tmp_path / "1.png")


def test_a_folder_without_images_is_refused_with_what_is_there(tmp_path):
    assert refusal(tmp_path).count("found nothing") == 1
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.npy").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme").write_text("")
    message = refusal(tmp_path)
    assert "has no image (png, jpg" in message
    assert "expected ROOT/train/CLASS/*.png" in message
    assert "found 'cat/a.npy', 'empty/', 'readme';" in message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.png", "b/1.png", "1.png"], "'1.png' outside class folders"),
        (["a/1.png", "a/2.png"], "one class, 'a'"),
        (["train/a/1.png", "test/a/1.png"], "one class, 'a'"),
        (["train/1.png", "test/2.png"], "'test/2.png' outside class folders"),
        (["train/a/1.png", "train/b/1.png", "train/2.png"], "'train/2.png' outside class folders"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "test images of 'c' and no train images"),
        (["train/a/1.png", "train/b/1.png", "c/1.png"], "'c' next to the split folders 'train'"),
        (["train/a/1.png", "train/b/1.png", "1.png"], "images next to the split folders 'train'"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "'val', 'valid', expected one test split"),
        (["train/a/1.png", "Train/b/1.png"], "'Train', 'train', expected one train split"),
        (["test/a/1.png", "test/b/1.png"], "no folder 'train'"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, words):
    write(tmp_path, *names)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("empty", ["test", "train/c"])
def test_a_class_or_split_without_images_is_refused(tmp_path, empty):
    write(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / empty).mkdir()
    (tmp_path / empty / "1.heic").write_bytes(b"")
    message = refusal(tmp_path)
    assert "has no image" in message
    assert empty in message


def test_class_folders_without_images_are_refused_without_split_folders_too(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "annotations").mkdir()
    assert f"in {str(tmp_path / 'annotations')!r}" in refusal(tmp_path)
    split_list(tmp_path, ("a/1.png", "train"), ("b/1.png", "train"))
    assert open_folder(str(tmp_path), Path()).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a/1.png", "train"), ("a/1.png", "test")], "splits overlap: row 3"),
        ([("a/1.png", "train"), ("./a//1.png", "train")], "splits overlap: row 3"),
        ([("a/1.png", "train"), ("a/9.png", "test")], "row 3 of"),
        ([("../a/1.png", "train")], "names '../a/1.png'"),
        ([("a/1.txt", "train")], "names 'a/1.txt'"),
        ([("a/1.png", "validation")], "expected FILE,SPLIT with one of train, test, unlabelled"),
        ([("a/1.png",)], "expected FILE,SPLIT"),
        ([], "lists no image"),
        ([("a/1.png", "test")], "lists test and no train images"),
        ([("a/1.png", "train"), ("b/1.png", "test")], "test images of 'b'"),
        ([("a/1.png", "train"), ("a/2.png", "test")], "one class"),
        ([("a/1.png", "train"), ("loose.png", "test")], "'loose.png' outside class folders"),
    ],
)
def test_other_split_lists_are_refused(tmp_path, rows, words):
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "loose.png")
    (tmp_path / "a" / "1.txt").write_text("")
    split_list(tmp_path, *rows)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "path,split\n1.png,train\n", 'file,split\n"1.png,train\n', f"file,split\n{'1' * 140_000},train\n"])
def test_damaged_split_lists_are_refused(tmp_path, text):
    write(tmp_path, "1.png")
    (tmp_path / "split.csv").write_text(text)
    assert "split.csv" in refusal(tmp_path)


def test_a_split_list_beside_split_folders_is_refused(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    split_list(tmp_path, ("train/a/1.png", "train"))
    assert "has both split.csv and the folders 'test', 'train'" in refusal(tmp_path)


def refused_overlap(root, cache):
    """Return the refusal to prepare splits that share a file, after seeing that it can be allowed."""
    source = open_folder(str(root), Path())
    with pytest.raises(DataError) as caught:
        prepare(source, Options(), cache)
    assert str(caught.value) == f"{source.overlap}, or set config.data.overlap=allow"
    prepare(source, Options(overlap="allow"), cache)
    return str(caught.value)


def test_splits_that_share_a_file_through_links_are_refused_unless_allowed(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    (tmp_path / "test" / "a" / "3.png").symlink_to(tmp_path / "train" / "a" / "1.png")
    message = refused_overlap(tmp_path, tmp_path.with_name("cache"))
    assert "splits overlap" in message
    assert "'test/a/3.png' (test)" in message
    assert "'train/a/1.png' (train)" in message


def test_splits_that_share_a_folder_through_a_link_are_refused(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "test").symlink_to("train")
    assert "splits overlap" in refused_overlap(tmp_path, tmp_path.with_name("cache"))


def test_links_to_other_folders_are_followed(tmp_path):
    write(tmp_path, "elsewhere/x/1.png", "root/b/2.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    source = open_folder(str(tmp_path / "link"), Path())
    assert read(source, "train") == ["a/1.png", "b/2.png"]
    assert source.root == tmp_path / "link"


def test_link_loops_and_links_to_nothing_are_refused(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert "expected no loops" in refusal(tmp_path)
    (tmp_path / "a" / "up").unlink()
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "none.png")
    assert "a broken link" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_refused(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b").chmod(0)
    try:
        assert "check its permissions" in refusal(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)
