import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data.decode import decode_image
from ssdd_jax.data.sources.tiny_imagenet import open_tiny_imagenet
from ssdd_jax.errors import DataError

TOP = "tiny-imagenet-200/"


def jpeg(level, mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, (64, 64), (level,) * 3 if mode == "RGB" else level).save(stream, "JPEG")
    return stream.getvalue()


def members():
    """The published layout with two classes, whose order in wnids.txt is not the sorted one."""
    files = {
        TOP: b"",
        TOP + "words.txt": b"n00000001\tentity\nn02\tgoldfish, Carassius auratus\nn03\tox\n",
        TOP + "wnids.txt": b"n02\nn01\n",
        TOP + "val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_10.JPEG\tn01\t1\t2\t3\t4\n",
        TOP + "test/images/test_0.JPEG": jpeg(99),
    }
    for at, name in enumerate(("n02/images/n02_0", "n02/images/n02_10", "n02/images/n02_2", "n01/images/n01_0")):
        files[TOP + f"train/{name}.JPEG"] = jpeg(10 * at, "L" if at == 3 else "RGB")
    files[TOP + "train/n01/images/"] = b""
    files[TOP + "train/n01/n01_boxes.txt"] = b"n01_0.JPEG\t0\t0\t9\t9\n"
    for at in (0, 1, 10):
        files[TOP + f"val/images/val_{at}.JPEG"] = jpeg(100 + at)
    return files


def write(folder, files):
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def read_all(folder):
    return {split: list(images.images.read()) for split, images in open_tiny_imagenet(folder).splits.items()}


def refusal(folder):
    with pytest.raises(DataError) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)
    assert "tiny-imagenet-200.zip" in str(caught.value)
    return str(caught.value)


def test_the_published_layout(tmp_path):
    write(tmp_path, members())
    source = open_tiny_imagenet(tmp_path)
    assert source.name == "tiny_imagenet"
    assert source.class_names == ("n01", "goldfish")
    assert source.files == (tmp_path / "tiny-imagenet-200.zip",)
    assert list(source.splits) == ["train", "test"]
    train, test = source.splits["train"], source.splits["test"]
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1]
    assert (train.images.channels, len(train.images), len(test.images)) == (3, 4, 3)
    for split, levels in ((train, [30, 0, 10, 20]), (test, [101, 110, 100])):
        images = list(split.images.read())
        assert [image.index for image in images] == list(range(len(levels)))
        assert [int(decode_image(image.content, 3)[0].mean()) for image in images] == levels
    assert next(image.name for image in test.images.read()) == TOP + "val/images/val_1.JPEG"


def test_the_published_numbers_of_classes_and_images_are_read(tmp_path):
    wnids = [f"n{number:08d}" for number in range(200)]
    files = {TOP + "wnids.txt": "\n".join(wnids), TOP + "words.txt": "", TOP + "val/val_annotations.txt": ""}
    files |= {f"{TOP}train/{wnid}/images/{wnid}_{at}.JPEG": b"" for wnid in wnids for at in range(20)}
    for at in range(2000):
        files[f"{TOP}val/images/val_{at}.JPEG"] = b""
        files[TOP + "val/val_annotations.txt"] += f"val_{at}.JPEG\t{wnids[at % 200]}\t0\t0\t1\t1\n"
    write(tmp_path, files)
    source = open_tiny_imagenet(tmp_path)
    assert source.class_names == tuple(wnids)
    assert np.array_equal(source.splits["train"].labels, np.repeat(np.arange(200), 20))
    assert np.array_equal(source.splits["test"].labels, np.repeat(np.arange(200), 10))


def test_a_missing_archive_is_named_with_its_checksum(tmp_path):
    message = refusal(tmp_path)
    assert "90528d7ca1a48142e341f4ef8d21d0de" in message
    assert "http://cs231n.stanford.edu" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wnids.txt": None}, "wnids.txt"),
        ({"words.txt": None}, "words.txt"),
        ({"val/val_annotations.txt": None}, "val_annotations.txt"),
        ({"wnids.txt": b""}, "wnids.txt is empty"),
        ({"wnids.txt": b"n02\nn01\nn03\n"}, "the class 'n03' of wnids.txt has no train images"),
        ({"wnids.txt": b"n02\n"}, "the class 'n01' is not in wnids.txt"),
        ({"words.txt": b"\xff\xfe"}, "UnicodeDecodeError"),
        ({"val/images/val_10.JPEG": None}, "'tiny-imagenet-200/val/images/val_10.JPEG' is missing"),
        ({"val/images/val_11.JPEG": b""}, "'tiny-imagenet-200/val/images/val_11.JPEG' is not in val_annotations.txt"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn02\t0\n" * 2}, "names an image twice"),
    ],
)
def test_other_contents_are_refused(tmp_path, change, words):
    files = members()
    for name, content in change.items():
        files.pop(TOP + name, None)
        if content is not None:
            files[TOP + name] = content
    write(tmp_path, files)
    message = refusal(tmp_path)
    assert words in message
    assert "the published one 90528d7ca1a48142e341f4ef8d21d0de" in message


def test_a_truncated_archive_is_refused(tmp_path):
    write(tmp_path, members())
    file = tmp_path / "tiny-imagenet-200.zip"
    file.write_bytes(file.read_bytes()[:-500])
    assert "BadZipFile" in refusal(tmp_path)


def test_a_flipped_byte_in_an_image_is_refused_when_it_is_read(tmp_path):
    write(tmp_path, members())
    file = tmp_path / "tiny-imagenet-200.zip"
    content = bytearray(file.read_bytes())
    content[content.index(jpeg(20)) + 100] ^= 1
    file.write_bytes(content)
    source = open_tiny_imagenet(tmp_path)
    with pytest.raises(DataError, match="Bad CRC-32"):
        list(source.splits["train"].images.read())
    assert len(list(source.splits["test"].images.read())) == 3


def test_flipped_bytes_anywhere_give_images_or_a_refusal(tmp_path):
    write(tmp_path, members())
    file = tmp_path / "tiny-imagenet-200.zip"
    content = file.read_bytes()
    random = np.random.RandomState(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        # Most of it is images; the directory at the end is where the ways to fail are.
        damaged[len(content) - random.randint(1, 1800)] = random.randint(256)
        file.write_bytes(damaged)
        try:
            read_all(tmp_path)
        except DataError:
            refused += 1
    assert refused > 30
