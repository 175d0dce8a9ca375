import importlib
import importlib.util
import io
import json
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data.source import choose_splits
from ssdd_jax.data.sources import open_source
from ssdd_jax.data.sources.tfds import open_tfds
from ssdd_jax.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record.python.array_record_data_source")
pytest.importorskip("importlib_resources")

PAIR = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Neither a network nor a folder of the user's."""

    def refuse(*args):
        raise AssertionError(f"the network was used: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds's own"))


def encode(pixels, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, kind)
    return stream.getvalue()


def make(seed, labels, shape=(32, 32, 3), **more):
    """Examples as a dataset's code yields them: encoded images, each of its own, and their labels."""
    random = np.random.RandomState(seed)
    pixels = [random.randint(0, 256, shape).astype(np.uint8) for _ in labels]
    return [{"image": encode(p), "label": label, **more} for p, label in zip(pixels, labels, strict=True)]


def builder_class(name, features, splits, pair=("image", "label"), version="1.0.0", config=None):
    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=described, supervised_keys=pair, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Prepared.name = name
    return Prepared


def prepare(folder, *args, shards=None, **kwargs):
    """What download_and_prepare(file_format="array_record") leaves, written by tfds itself; returns the folder of the version."""
    builder = builder_class(*args, **kwargs)(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return folder / builder.name / (kwargs.get("config") or "") / str(builder.version)


def contents(split):
    return [image.content for image in split.images.read()]


def refusal(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        open_tfds(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two classes in two shards, copied by `pets`."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, "pets", PAIR, {"train": make(0, [0, 1, 1, 0, 1]), "test": make(1, [1, 0])}, shards=2)
    return folder


@pytest.fixture
def pets(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "data")
    return tmp_path / "data"


# The features are those of tfds's own builders, to which these datasets' code adds the names of the classes while it prepares.
def test_reads_cifar10(tmp_path):
    features = dict(tfds.builder("cifar10", data_dir=tmp_path).info.features)
    features["label"].names = [f"thing {number}" for number in range(10)]
    train, test = make(0, [7, 0, 9, 3, 3], id="train_1"), make(1, [1, 2], id="test_1")
    folder = prepare(tmp_path, "cifar10", features, {"train": train, "test": test}, version="3.0.2")
    source = open_tfds("cifar10", tmp_path)
    assert (source.name, source.root) == ("cifar10", None)
    assert source.class_names == tuple(f"thing {number}" for number in range(10))
    assert source.splits.keys() == {"train", "test"}
    for split, examples in (("train", train), ("test", test)):
        found = source.splits[split]
        assert found.labels.dtype == np.int32
        assert found.labels.tolist() == [example["label"] for example in examples]
        assert len(found.images) == len(examples)
        assert found.images.channels == 3
        images = list(found.images.read())
        assert [image.content for image in images] == [example["image"] for example in examples]
        assert [(image.index, image.name) for image in images] == [(i, f"{split}/{i}") for i in range(len(examples))]
        # Read once more, from the first image on.
        assert list(found.images.read()) == images
    names = ["dataset_info.json", "features.json", "label.labels.txt", "cifar10-train.array_record-00000-of-00001"]
    assert [str(file) for file in source.files] == [str(folder / n) for n in [*names, "cifar10-test.array_record-00000-of-00001"]]
    assert all(file.is_file() for file in source.files)


def test_reads_svhn_without_its_extra_images(tmp_path):
    features = dict(tfds.builder("svhn_cropped", data_dir=tmp_path).info.features)
    splits = {"train": make(0, [1, 9], id="1"), "test": make(1, [0], id="1"), "extra": make(2, [5, 5, 5], id="1")}
    prepare(tmp_path, "svhn_cropped", features, splits, version="3.1.0")
    source = open_tfds("svhn_cropped", tmp_path)
    assert source.class_names == tuple("0123456789")
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {"train": [1, 9], "test": [0]}
    assert not [file for file in source.files if "extra" in file.name]


def test_reads_stl10_whose_unlabelled_images_have_the_label_minus_one(tmp_path):
    features = dict(tfds.builder("stl10", data_dir=tmp_path).info.features)
    splits = {"train": make(0, [1, 9], (96, 96, 3)), "test": make(1, [0], (96, 96, 3)), "unlabelled": make(2, [-1, -1, -1], (96, 96, 3))}
    prepare(tmp_path, "stl10", features, splits)
    source = open_tfds("stl10", tmp_path)
    assert {name: len(split.images) for name, split in source.splits.items()} == {"train": 2, "test": 1, "unlabelled": 3}
    assert source.splits["unlabelled"].labels is None
    assert contents(source.splits["unlabelled"]) == [example["image"] for example in splits["unlabelled"]]


def test_reads_a_config_whose_test_split_is_called_validation(tmp_path):
    splits = {"train": make(0, [1, 0], (64, 64, 3)), "validation": make(1, [1], (64, 64, 3))}
    features = {"image": tfds.features.Image(shape=(64, 64, 3)), "label": PAIR["label"]}
    prepare(tmp_path, "imagenet_resized", features, splits, version="0.1.0", config="64x64")
    source = open_tfds("imagenet_resized/64x64", tmp_path)
    # It names a folder of the cache, so it has no slash.
    assert source.name == "imagenet_resized_64x64"
    assert [(image.name, image.content) for image in source.splits["test"].images.read()] == [("test/0", splits["validation"][0]["image"])]
    assert open_tfds("imagenet_resized/64x64:0.1.0", tmp_path).splits["train"].labels.tolist() == [1, 0]


def test_images_of_any_size_and_kind_stay_as_they_are_stored(tmp_path):
    random = np.random.RandomState(0)
    files = [encode(random.randint(0, 256, (5 + i, 9, 3)).astype(np.uint8), kind) for i, kind in enumerate(("png", "jpeg", "png"))]
    prepare(tmp_path, "pets", PAIR, {"train": [{"image": file, "label": 0} for file in files]})
    source = open_tfds("pets", tmp_path)
    assert contents(source.splits["train"]) == files
    assert source.splits.keys() == {"train"}


def test_grey_images_have_one_channel(tmp_path):
    features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": PAIR["label"]}
    prepare(tmp_path, "greys", features, {"train": make(0, [0, 1], (28, 28, 1))})
    assert open_tfds("greys", tmp_path).splits["train"].images.channels == 1


def test_reads_the_shards_in_order(pets):
    source = open_tfds("pets", pets)
    assert sorted(file.name for file in source.files if "train" in file.name) == [
        f"pets-train.array_record-0000{i}-of-00002" for i in range(2)
    ]
    assert contents(source.splits["train"]) == [example["image"] for example in make(0, [0, 1, 1, 0, 1])]
    assert source.splits["train"].labels.tolist() == [0, 1, 1, 0, 1]


def test_takes_the_newest_version_or_the_one_asked_for(pets):
    prepare(pets, "pets", PAIR, {"train": make(3, [1])}, version="1.2.0")
    assert len(open_tfds("pets", pets).splits["train"].images) == 1
    assert len(open_tfds("pets:1.0.0", pets).splits["train"].images) == 5
    assert len(open_tfds("pets:1.0.*", pets).splits["train"].images) == 5


def test_looks_into_the_data_folder_then_into_tfds_own(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(pets))
    elsewhere = tmp_path / "elsewhere"
    assert len(open_tfds("pets", elsewhere).splits["train"].images) == 5
    prepare(elsewhere, "pets", PAIR, {"train": make(3, [1])})
    assert len(open_tfds("pets", elsewhere).splits["train"].images) == 1


def test_opens_by_its_name_as_a_source(pets):
    assert open_source("tfds:pets:1.0.0", pets).splits["test"].labels.tolist() == [1, 0]


def test_choose_splits_passes_over_a_test_split_whose_labels_are_secret():
    labels = {"train": [0, 1, -1], "test": [-1, -1], "validation": [1, 0], "unlabelled": [-1]}
    chosen = choose_splits("x", labels, lambda name: np.array(labels[name]))
    assert {split: name for split, (name, _) in chosen.items()} == {"train": "train", "test": "validation", "unlabelled": "unlabelled"}
    labels["test"] = [-1, 1]
    assert choose_splits("x", labels, lambda name: np.array(labels[name]))["test"][0] == "test"
    # A label that is missing in train is not a reason to leave train out: it is refused later.
    assert chosen["train"][1].tolist() == [0, 1, -1]
    assert chosen["unlabelled"][1] is None
    assert choose_splits("x", ["train", "test", "val"], lambda name: None) == {"train": ("train", None), "test": ("test", None)}


def test_choose_splits_refuses_a_dataset_with_nothing_to_train_on():
    with pytest.raises(DataError, match="x has the splits test, dev, expected train or unlabelled"):
        choose_splits("x", ["test", "dev"], lambda name: np.zeros(1))


@pytest.mark.parametrize("argument", ["", "a b", "/data/cifar10", "kaggle:cifar10", "cifar10/a/b", "cifar10:new"])
def test_an_argument_that_names_no_dataset_is_refused(argument, tmp_path):
    assert f"'tfds:{argument}' does not name a dataset, expected tfds:NAME, tfds:NAME/CONFIG" in refusal(argument, tmp_path)


def test_an_unknown_dataset_is_refused_with_the_nearest_name(tmp_path):
    message = refusal("cifarr10", tmp_path)
    assert f"tfds:cifarr10 is not prepared in {str(tmp_path)!r} or" in message
    assert "has no dataset 'cifarr10' that it could prepare; did you mean 'cifar10'?" in message


def test_what_is_not_prepared_is_refused_with_the_command(tmp_path):
    message = refusal("cifar10", tmp_path / "my data")
    assert message.startswith(f"tfds:cifar10 is not prepared in {str(tmp_path / 'my data')!r} or {str(tmp_path)!r}".rpartition(" or ")[0])
    assert message.endswith(f"run: python -m ssdd_jax.data download tfds:cifar10 --data_dir '{tmp_path}/my data'")
    assert not (tmp_path / "my data").exists()


def test_another_version_than_the_prepared_one_is_refused_with_what_there_is(pets):
    assert "tfds:pets:2.0.0 is not prepared in" in refusal("pets:2.0.0", pets)
    assert "(only pets/1.0.0)" in refusal("pets:2.0.0", pets)


@pytest.mark.parametrize("download", [False, True])
def test_another_format_is_refused(pets, download):
    info = pets / "pets" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = refusal("pets", pets, download=download)
    assert f"{str(info.parent)!r} is prepared as tfrecord only, expected array_record" in message
    assert f"move that folder away, then run: python -m ssdd_jax.data download tfds:pets --data_dir {pets}" in message


def test_another_format_in_tfds_own_folder_need_not_be_moved(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(pets))
    info = pets / "pets" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = refusal("pets", tmp_path / "new")
    assert f"prepare it again, run: python -m ssdd_jax.data download tfds:pets --data_dir {tmp_path / 'new'}" in message


@pytest.mark.parametrize(
    ("features", "pair", "found"),
    [
        (PAIR, None, "None"),
        ({**PAIR, "label": tfds.features.Text()}, ("image", "label"), "Image and Text"),
        ({**PAIR, "image": tfds.features.Text()}, ("image", "label"), "Text and ClassLabel"),
        ({**PAIR, "image": tfds.features.Image(dtype=np.uint16, encoding_format="png")}, ("image", "label"), "Image and ClassLabel"),
        ({**PAIR, "image": tfds.features.Sequence(PAIR["image"])}, ("image", "label"), "Sequence and ClassLabel"),
        ({**PAIR, "other": tfds.features.Text()}, ("image", "label", "other"), "Image and ClassLabel and Text"),
    ],
)
def test_other_pairs_than_image_and_class_are_refused(features, pair, found, tmp_path):
    builder = builder_class("pairs", features, {}, pair)(data_dir=tmp_path, file_format="array_record")
    folder = tmp_path / "pairs" / "1.0.0"
    folder.mkdir(parents=True)
    builder.info.write_to_directory(folder)
    assert f"tfds:pairs pairs {found}, expected an Image of uint8 and a ClassLabel" in refusal("pairs", tmp_path)


def test_features_that_need_tensorflow_are_refused(pets):
    file = pets / "pets" / "1.0.0" / "features.json"
    content = json.loads(file.read_text())
    video = {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video", "video": {"shape": {"dimensions": [-1, 8, 8, 3]}}}
    content["featuresDict"]["features"]["image"] = video
    file.write_text(json.dumps(content))
    assert "tfds:pets has features that tfds reads only with tensorflow, which is not installed" in refusal("pets", pets)


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "flipped":
        content[150:160] = bytes(255 - byte for byte in content[150:160])
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_a_damaged_file_is_named(pets, how):
    file = pets / "pets" / "1.0.0" / "pets-train.array_record-00001-of-00002"
    damage(file, how)
    assert f"cannot read {str(file)!r}: RuntimeError: " in refusal("pets", pets)


def test_a_missing_file_is_named(pets):
    file = pets / "pets" / "1.0.0" / "pets-test.array_record-00000-of-00002"
    file.unlink()
    message = refusal("pets", pets)
    assert f"cannot read {str(file)!r}" in message
    assert "No such file" in message


def test_a_file_that_is_damaged_after_opening_is_named(pets):
    source = open_tfds("pets", pets)
    file = pets / "pets" / "1.0.0" / "pets-train.array_record-00000-of-00002"
    damage(file, "cut")
    with pytest.raises(DataError, match=file.name):
        contents(source.splits["train"])


def test_files_of_another_preparation_are_refused(pets):
    folder = pets / "pets" / "1.0.0"
    shutil.copy(folder / "pets-test.array_record-00000-of-00002", folder / "pets-train.array_record-00000-of-00002")
    message = refusal("pets", pets)
    assert "pets-train.array_record-00000-of-00002': it holds 1 records; expected" in message
    assert "as dataset_info.json says" in message


@pytest.mark.parametrize(
    ("features", "example", "problem"),
    [
        ({"image": PAIR["image"]}, {}, "a record has no 'label'"),
        ({**PAIR, "label": tfds.features.Text()}, {"label": "cat"}, "Error"),
        (PAIR, None, "DecodeError"),
    ],
)
def test_other_records_than_the_description_says_are_refused(features, example, problem, tmp_path):
    (image,) = make(0, [0])
    folder = prepare(tmp_path / "data", "pets", PAIR, {"train": [image]})
    file = folder / "pets-train.array_record-00000-of-00001"
    if example is None:
        writer = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter(str(file), "group_size:1")
        writer.write(b"\xff" * 40)
        writer.close()
    else:
        other = prepare(tmp_path / "other", "pets", features, {"train": [{"image": image["image"], **example}]}, pair=None)
        shutil.copy(other / file.name, file)
    message = refusal("pets", tmp_path / "data")
    assert f"cannot read {str(file)!r}: " in message
    assert problem in message
    assert "expected records of image, label, as features.json says" in message


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_refused(pets, name):
    file = pets / "pets" / "1.0.0" / name
    file.write_bytes(file.read_bytes()[:-40])
    assert f"cannot read {str(pets / 'pets')!r}: " in refusal("pets", pets)


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record.python.array_record_data_source", "importlib_resources"])
def test_a_missing_package_is_named(module, pets, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal("pets", pets)
    assert f"data source 'tfds' needs {module}, which is not installed; run: pip install ssdd-jax[tfds]" in message


def test_download_without_tensorflow_says_how_to_prepare_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refusal("imagenet_resized/64x64", tmp_path, download=True)
    assert "only with TensorFlow, which is not installed" in message
    assert (
        "python -m venv tfds-venv && tfds-venv/bin/pip install tensorflow tensorflow-datasets array-record importlib_resources" in message
    )
    build = (
        f'tfds.builder("imagenet_resized/64x64", data_dir={json.dumps(str(tmp_path))}, file_format="array_record").download_and_prepare()'
    )
    assert message.endswith(f"tfds-venv/bin/python -c 'import tensorflow_datasets as tfds; {build}'")


def test_download_prepares_once_where_tensorflow_is(tmp_path, monkeypatch):
    class SsddJaxPets(builder_class("ssdd_jax_pets", PAIR, {"train": make(0, [0, 1])})):
        pass

    # This builder needs no TensorFlow, so it is enough that there seems to be one.
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name == "tensorflow" or find_spec(name, *args))
    assert "tfds:ssdd_jax_pets is not prepared" in refusal("ssdd_jax_pets", tmp_path)
    assert open_tfds("ssdd_jax_pets", tmp_path, download=True).splits["train"].labels.tolist() == [0, 1]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert contents(open_tfds("ssdd_jax_pets", tmp_path, download=True).splits["train"]) == [e["image"] for e in make(0, [0, 1])]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    class SsddJaxBroken(builder_class("ssdd_jax_broken", PAIR, {})):
        def _split_generators(self, dl_manager):
            raise ConnectionError("no route\nto the host")

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name == "tensorflow" or find_spec(name, *args))
    message = refusal("ssdd_jax_broken", tmp_path, download=True)
    assert f"tfds cannot prepare ssdd_jax_broken in {str(tmp_path)!r}: ConnectionError: no route to the host" in message
