import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ssdd_jax.data.decode import decode_image
from ssdd_jax.data.sources.dogs import open_dogs
from ssdd_jax.errors import DataError

BREEDS = ("n02085620-Chihuahua", "n02094114-Norfolk_terrier", "n02098105-soft-coated_wheaten_terrier")
TRAIN = [(f"{breed}/{breed[:9]}_{at}.jpg", label) for label, breed in enumerate(BREEDS, 1) for at in (7, 10)]
TEST = [(f"{breed}/{breed[:9]}_99.jpg", label) for label, breed in enumerate(BREEDS, 1)][::-1]


def jpeg(level):
    stream = io.BytesIO()
    Image.new("RGB", (20, 30), (level,) * 3).save(stream, "JPEG")
    return stream.getvalue()


def mat(rows, **changes):
    """One of the lists as it is published: cell arrays of file names and annotations, labels (n, 1)."""

    def cells(texts):
        array = np.empty((len(texts), 1), object)
        array[:, 0] = texts
        return array

    content = {
        "file_list": cells([name for name, _ in rows]),
        "annotation_list": cells([name.removesuffix(".jpg") for name, _ in rows]),
        "labels": np.array([[label] for _, label in rows], np.uint8),
    } | changes
    stream = io.BytesIO()
    savemat(stream, {key: value for key, value in content.items() if value is not None})
    return stream.getvalue()


def tar(file, files):
    file.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(file, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def lists(train=TRAIN, test=TEST):
    return {"file_list.mat": mat([*train, *test]), "test_list.mat": mat(test), "train_list.mat": mat(train)}


def images(rows=(*TEST, *TRAIN)):
    return {f"Images/{name}": jpeg(10 * at) for at, (name, _) in enumerate(rows)}


def write(folder, image_files=None, list_files=None):
    tar(folder / "images.tar", image_files or images())
    tar(folder / "lists.tar", list_files or lists())


def refusal(folder):
    with pytest.raises(DataError) as caught:
        open_dogs(folder)
    assert "\n" not in str(caught.value)
    assert ".tar" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("place", "top"), [("", ""), ("stanford_dogs", ""), ("", "./")])
def test_the_published_layout(tmp_path, place, top):
    write(tmp_path / place, *({top + name: content for name, content in files.items()} for files in (images(), lists())))
    if place:
        tar(tmp_path / "images.tar", {"another dataset's": b""})
    source = open_dogs(tmp_path)
    assert source.name == "dogs"
    assert source.class_names == ("Chihuahua", "Norfolk terrier", "soft-coated wheaten terrier")
    assert source.files == (tmp_path / place / "images.tar", tmp_path / place / "lists.tar")
    assert list(source.splits) == ["train", "test"]
    assert source.splits["train"].labels.dtype == np.int32
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.splits["test"].labels.tolist() == [2, 1, 0]
    for split, rows, first in (("train", TRAIN, 3), ("test", TEST, 0)):
        assert (len(source.splits[split].images), source.splits[split].images.channels) == (len(rows), 3)
        for index, image in enumerate(source.splits[split].images.read()):
            assert image.index == index
            assert image.name == f"Images/{rows[index][0]}"
            pixels, _ = decode_image(image.content)
            assert pixels.shape == (30, 20, 3)
            assert (pixels == 10 * (first + index)).all()


def test_the_published_numbers_of_classes_and_images_are_read(tmp_path):
    breeds = [f"n{label:08d}-Dog_{label}" for label in range(120)]
    train = [(f"{breed}/{at}.jpg", label) for label, breed in enumerate(breeds, 1) for at in range(100)]
    test = [(f"{breed}/{at + 100}.jpg", label) for label, breed in enumerate(breeds, 1) for at in range(70)]
    write(tmp_path, dict.fromkeys((f"Images/{name}" for name, _ in train + test), b""), lists(train, test))
    source = open_dogs(tmp_path)
    assert len(source.class_names) == 120
    assert np.array_equal(source.splits["train"].labels, np.repeat(np.arange(120), 100))


def test_missing_archives_are_named_with_their_checksums(tmp_path):
    message = refusal(tmp_path)
    assert "1bb1f2a596ae7057f99d7d75860002ef" in message
    assert "edbb9f16854ec66506b5f09b583e0656" in message
    tar(tmp_path / "stanford_dogs" / "lists.tar", lists())
    message = refusal(tmp_path)
    assert "has no images.tar" in message
    assert "stanford_dogs" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lists(test=[*TEST, TRAIN[1]]), f"splits overlap: '{TRAIN[1][0]}' is in train_list.mat and again in test_list.mat"),
        (lists(train=[*TRAIN, TRAIN[1]]), "is in train_list.mat and again in train_list.mat"),
        ({"train_list.mat": mat(TRAIN)}, "it has no test_list.mat"),
        (lists() | {"test_list.mat": mat(TEST, labels=None)}, "labels"),
        (lists() | {"test_list.mat": mat(TEST, file_list=None)}, "file_list"),
        (lists() | {"test_list.mat": mat(TEST, labels=np.array([[1], [2]]))}, "test_list.mat has 3 files and labels"),
        (lists() | {"test_list.mat": mat(TEST, labels=np.array([[0], [1], [2]]))}, "test_list.mat has 3 files and labels"),
        (lists() | {"test_list.mat": mat(TEST, labels=np.array([[1.5], [2], [3]]))}, "test_list.mat has 3 files and labels"),
        (lists() | {"test_list.mat": mat(TEST, labels=np.array([["a"], ["b"], ["c"]]))}, "test_list.mat has 3 files and labels"),
        (lists() | {"test_list.mat": b"no matlab file" * 50}, "cannot read"),
        (lists() | {"test_list.mat": mat(TEST)[:300]}, "cannot read"),
        (lists(train=TRAIN[2:]), "train_list.mat has no image of 'n02085620-Chihuahua'"),
        (lists(test=[(TEST[0][0], 1)]), "label 1 is both 'n02085620-Chihuahua' and 'n02098105-soft-coated_wheaten_terrier'"),
        (lists(test=[("n02097658-silky_terrier/1.jpg", 5)]), "the labels are not 1..4"),
        (lists(test=[("n02097658-silky_terrier/1.jpg", 4)]), "train_list.mat has no image of 'n02097658-silky_terrier'"),
    ],
)
def test_other_lists_are_refused(tmp_path, change, words):
    write(tmp_path, images([*TRAIN, *TEST, ("n02097658-silky_terrier/1.jpg", 4)]), change)
    message = refusal(tmp_path)
    assert words in message
    assert "lists.tar" in message


def test_missing_images_are_refused_with_the_first_named(tmp_path):
    write(tmp_path, images(TRAIN[:3]))
    message = refusal(tmp_path)
    assert f"it has no 'Images/{TRAIN[3][0]}', nor 2 others, of the 6 images in train_list.mat" in message
    assert "the published one 1bb1f2a596ae7057f99d7d75860002ef" in message
    assert "another dataset's" in message


@pytest.mark.parametrize("name", ["images.tar", "lists.tar"])
def test_truncated_and_other_archives_are_refused(tmp_path, name):
    write(tmp_path)
    content = (tmp_path / name).read_bytes()
    # A tar file ends with two blocks of zeros and is filled up to 20.
    whole = len(content.rstrip(b"\0"))
    for damaged in (b"", b"<html>not found</html>", content[: whole // 2], content[: whole - 100]):
        (tmp_path / name).write_bytes(damaged)
        assert name in refusal(tmp_path)
