import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data.decode import decode_image
from ssdd_jax.data.sources.cub import open_cub200
from ssdd_jax.errors import DataError

TOP = "CUB_200_2011/"
NAMES = (
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
    "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    "002.Laysan_Albatross/Laysan_Albatross_0003_1033.jpg",
)


def jpeg(level, size=(20, 30)):
    stream = io.BytesIO()
    Image.new("L" if level == 30 else "RGB", size, level if level == 30 else (level,) * 3).save(stream, "JPEG")
    return stream.getvalue()


def members():
    """The published layout; the images come in another order than in the list, and one of the lists after them."""
    return {
        "attributes.txt": b"1 has_bill_shape::curved\n",
        TOP + "README": b"",
        TOP + "images.txt": "".join(f"{row + 1} {name}\n" for row, name in enumerate(NAMES)).encode(),
        TOP + "image_class_labels.txt": b"1 1\n2 1\n3 2\n4 2\n",
        TOP + "classes.txt": b"1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
        TOP + "images/001.Black_footed_Albatross/._x.jpg": b"",
        **{TOP + f"images/{NAMES[row]}": jpeg(10 * row, (20 + row, 30)) for row in (3, 1, 2, 0)},
        TOP + "train_test_split.txt": b"1 0\n2 1\n3 1\n4 0\n",
        TOP + "parts/parts.txt": b"",
    }


def write(folder, files):
    with tarfile.open(folder / "CUB_200_2011.tgz", "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def read_all(folder):
    return {split: list(images.images.read()) for split, images in open_cub200(folder).splits.items()}


def refusal(folder):
    with pytest.raises(DataError) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)
    assert "CUB_200_2011.tgz" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("top", ["", "./"])
def test_the_published_layout(tmp_path, top):
    write(tmp_path, {top + name: content for name, content in members().items()})
    source = open_cub200(tmp_path)
    assert source.name == "cub200"
    assert source.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert source.files == (tmp_path / "CUB_200_2011.tgz",)
    assert list(source.splits) == ["train", "test"]
    for split, rows in (("train", [1, 2]), ("test", [0, 3])):
        images, labels = source.splits[split].images, source.splits[split].labels
        assert labels.dtype == np.int32
        assert labels.tolist() == [0, 1]
        assert (len(images), images.channels) == (2, 3)
        for _ in range(2):
            found = {image.index: image for image in images.read()}
            assert sorted(found) == [0, 1]
            for index, row in enumerate(rows):
                assert found[index].name == TOP + f"images/{NAMES[row]}"
                pixels, _ = decode_image(found[index].content, 3)
                assert pixels.shape == (30, 20 + row, 3)
                assert (pixels == 10 * row).all()
    assert [image.index for image in source.splits["test"].images.read()] == [1, 0]


def test_the_published_numbers_of_classes_and_images_are_read(tmp_path):
    names = [f"{label + 1:03d}.Bird_{label}/{at}.jpg" for label in range(200) for at in range(59)][:11788]
    files = {
        TOP + "classes.txt": "".join(f"{label + 1} {label + 1:03d}.Bird_{label}\n" for label in range(200)).encode(),
        TOP + "images.txt": "".join(f"{row + 1} {name}\n" for row, name in enumerate(names)).encode(),
        TOP + "image_class_labels.txt": "".join(f"{row + 1} {int(name[:3])}\n" for row, name in enumerate(names)).encode(),
        TOP + "train_test_split.txt": "".join(f"{row + 1} {int(row < 5994)}\n" for row in range(len(names))).encode(),
    }
    write(tmp_path, files)
    source = open_cub200(tmp_path)
    assert len(source.class_names) == 200
    assert [len(split.images) for split in source.splits.values()] == [5994, 5794]
    assert source.splits["test"].labels[-1] == 199


def test_a_missing_archive_is_named_with_its_checksum(tmp_path):
    assert "97eceeb196236b17998738112f37df78" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({TOP + "classes.txt": None}, "it has no 'CUB_200_2011/classes.txt'"),
        ({TOP + f"images/{NAMES[2]}": None}, f"it has no 'CUB_200_2011/images/{NAMES[2]}'"),
        ({TOP + "images.txt": b"1 a/1.jpg\n"}, "number other images, or one twice"),
        ({TOP + "images.txt": b""}, "number other images"),
        ({TOP + "images.txt": "".join(f"{row} a/1.jpg\n" for row in range(1, 5)).encode()}, "images.txt has an image twice"),
        ({TOP + "images.txt": b"1\n"}, "images.txt has the line '1'"),
        ({TOP + "image_class_labels.txt": b"1 1\n2 1\n3 2\n4 x\n"}, "image_class_labels.txt has the line '4 x'"),
        ({TOP + "image_class_labels.txt": b"1 1\n2 1\n3 2\n4 3\n"}, "does not number from 1"),
        ({TOP + "image_class_labels.txt": b"1 1\n2 1\n3 2\n4 2\n4 2\n"}, "or one twice"),
        ({TOP + "classes.txt": b"0 a\n1 b\n"}, "does not number from 1"),
        ({TOP + "classes.txt": b"1 \xff\n"}, "is not text"),
        ({TOP + "train_test_split.txt": b"1 1\n2 1\n3 1\n4 1\n"}, "has no test image"),
        ({TOP + "train_test_split.txt": b"1 1\n2 1\n3 1\n4 2\n"}, "train_test_split.txt"),
    ],
)
def test_other_contents_are_refused(tmp_path, change, words):
    write(tmp_path, {name: content for name, content in (members() | change).items() if content is not None})
    message = refusal(tmp_path)
    assert words in message
    assert "the published one 97eceeb196236b17998738112f37df78" in message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, share):
    write(tmp_path, members())
    file = tmp_path / "CUB_200_2011.tgz"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refusal(tmp_path)


def test_what_is_no_gzipped_tar_is_refused(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"<html>not found</html>")
    assert "not a gzip file" in refusal(tmp_path)
    (tmp_path / "CUB_200_2011.tgz").write_bytes(gzip.compress(b"no tar" * 200))
    refusal(tmp_path)


def test_flipped_bytes_give_images_or_a_refusal(tmp_path):
    write(tmp_path, members())
    file = tmp_path / "CUB_200_2011.tgz"
    content = gzip.decompress(file.read_bytes())
    random = np.random.RandomState(0)
    refused = 0
    for at in random.randint(0, len(content), 150):
        damaged = bytearray(content)
        damaged[at] ^= 1 << random.randint(8)
        file.write_bytes(gzip.compress(damaged, 1))
        try:
            assert {split: len(images) for split, images in read_all(tmp_path).items()} == {"train": 2, "test": 2}
        except DataError:
            refused += 1
    assert refused > 5
