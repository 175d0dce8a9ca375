import io
import json
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.data import Options, open_prepared, prepare
from ssdd_jax.data.sources import open_source
from ssdd_jax.data.sources.hf import open_hf
from ssdd_jax.errors import DataError

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog", "newt"]
FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No network, and no bars: they are written to a stream that pytest has closed by then."""

    def refuse(*args):
        raise AssertionError(f"the network was used: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    datasets.disable_progress_bars()


def make(seed, count):
    """Images of many sizes and their labels."""
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, (6 + i % 4, 9, 3)).astype(np.uint8) for i in range(count)], random.randint(0, 3, count).tolist()


def dataset(images, labels, features=FEATURES, **columns):
    content = {"image": [Image.fromarray(image) for image in images], "label": labels, **columns}
    return datasets.Dataset.from_dict({name: content[name] for name in features}, features=datasets.Features(features))


PARTS = {"train": make(0, 7), "test": make(1, 3)}


def both(**features):
    return datasets.DatasetDict({name: dataset(*part, **features) for name, part in PARTS.items()})


def save(folder):
    both().save_to_disk(folder)


def save_parquet(folder):
    (folder / "data").mkdir(parents=True)
    train, test = both().values()
    train.select(range(4)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    train.select(range(4, 7)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    test.to_parquet(folder / "data" / "test-00000-of-00001.parquet")


def pixels(split):
    found = list(split.images.read())
    assert [image.index for image in found] == list(range(len(split.images)))
    return [np.asarray(Image.open(io.BytesIO(image.content))) for image in found]


def refusal(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        open_hf(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(source, parts=PARTS):
    assert source.splits.keys() == parts.keys()
    for name, (images, labels) in parts.items():
        split = source.splits[name]
        assert split.labels.dtype == np.int32
        assert split.labels.tolist() == labels
        for _ in range(2):
            found = pixels(split)
            assert len(found) == len(images)
            assert all(np.array_equal(a, b) for a, b in zip(found, images, strict=True))
    assert source.class_names == tuple(NAMES)


@pytest.mark.parametrize("write", [save, save_parquet])
def test_reads_back_what_was_saved(write, tmp_path):
    write(tmp_path / "pets")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    source = open_hf(str(tmp_path / "pets"), tmp_path / "data")
    check(source)
    assert (source.name, source.root) == ("pets", None)
    assert [image.name for image in source.splits["test"].images.read()] == ["test/0", "test/1", "test/2"]
    assert source.splits["train"].images.channels == 0
    # Nothing is written: neither a cache nor a lock beside the data, which may be for reading only.
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_the_files_are_those_that_are_read(tmp_path):
    save(tmp_path / "saved")
    saved = open_hf(str(tmp_path / "saved"), tmp_path)
    names = ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"]
    assert [str(file) for file in saved.files] == [str(tmp_path / "saved" / split / name) for split in PARTS for name in names]
    save_parquet(tmp_path / "parquet")
    read = open_hf(str(tmp_path / "parquet"), tmp_path)
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    assert [str(file) for file in read.files] == [str(tmp_path / "parquet" / "data" / f"{name}.parquet") for name in names]


def test_opens_by_its_name_as_a_source(tmp_path):
    save(tmp_path / "pets")
    check(open_source(f"hf:{tmp_path / 'pets'}", tmp_path))


def test_image_files_stay_as_they_are(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(make(0, 1)[0][0]).save(stream, "jpeg")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    content = {"image": [str(tmp_path / "a.jpg"), {"bytes": stream.getvalue(), "path": None}], "label": [0, 1]}
    datasets.Dataset.from_dict(content, features=datasets.Features(FEATURES)).save_to_disk(tmp_path / "pets")
    (tmp_path / "a.jpg").unlink()
    split = open_hf(str(tmp_path / "pets"), tmp_path).splits["train"]
    assert [image.content for image in split.images.read()] == [stream.getvalue()] * 2


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), (None, 0)])
def test_a_mode_of_the_column_sets_the_channels(mode, channels, tmp_path):
    part = dataset(*make(0, 2), {**FEATURES, "image": datasets.Image(mode=mode)})
    part.save_to_disk(tmp_path / "pets")
    assert open_hf(str(tmp_path / "pets"), tmp_path).splits["train"].images.channels == channels


def test_a_single_dataset_is_train_unless_it_says_otherwise(tmp_path):
    part = dataset(*PARTS["train"])
    part.save_to_disk(tmp_path / "one")
    check(open_hf(str(tmp_path / "one"), tmp_path), {"train": PARTS["train"]})
    datasets.Dataset.from_dict(part.with_format("arrow")[:].to_pydict(), features=part.features, split="test").save_to_disk(
        tmp_path / "other"
    )
    assert "has the splits test, expected train or unlabelled" in refusal(str(tmp_path / "other"), tmp_path)


def test_validation_is_the_test_split_where_the_labels_of_test_are_secret(tmp_path):
    parts = {"train": make(0, 4), "validation": make(1, 3), "test": (make(2, 2)[0], [-1, -1]), "extra": make(3, 2)}
    datasets.DatasetDict({name: dataset(*part) for name, part in parts.items()}).save_to_disk(tmp_path / "pets")
    check(open_hf(str(tmp_path / "pets"), tmp_path), {"train": parts["train"], "test": parts["validation"]})


def test_a_missing_label_is_minus_one(tmp_path):
    datasets.DatasetDict(train=dataset(make(0, 3)[0], [1, None, 2])).save_to_disk(tmp_path / "pets")
    assert open_hf(str(tmp_path / "pets"), tmp_path).splits["train"].labels.tolist() == [1, -1, 2]


def test_an_unlabelled_split_has_no_labels(tmp_path):
    parts = {"train": make(0, 4), "unlabeled": (make(1, 3)[0], [-1] * 3)}
    datasets.DatasetDict({name: dataset(*part) for name, part in parts.items()}).save_to_disk(tmp_path / "pets")
    source = open_hf(str(tmp_path / "pets"), tmp_path)
    assert source.splits.keys() == {"train", "unlabelled"}
    assert source.splits["unlabelled"].labels is None
    assert np.array_equal(pixels(source.splits["unlabelled"])[2], parts["unlabeled"][0][2])


def test_without_classes_nothing_is_labelled(tmp_path):
    dataset(*make(0, 3), {"image": datasets.Image()}).save_to_disk(tmp_path / "pets")
    source = open_hf(str(tmp_path / "pets"), tmp_path)
    assert source.class_names == ()
    assert source.splits["train"].labels is None
    assert len(pixels(source.splits["train"])) == 3


def test_fine_labels_go_before_coarse_ones_and_img_before_others(tmp_path):
    images, labels = make(0, 4)
    features = {
        "mask": datasets.Image(),
        "coarse_label": datasets.ClassLabel(names=["a", "b"]),
        "fine_label": datasets.ClassLabel(names=NAMES),
        "img": datasets.Image(),
    }
    as_images = [Image.fromarray(image) for image in images]
    dataset(images, labels, features, mask=as_images[::-1], coarse_label=[0] * 4, fine_label=labels, img=as_images).save_to_disk(
        tmp_path / "pets"
    )
    check(open_hf(str(tmp_path / "pets"), tmp_path), {"train": (images, labels)})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": FEATURES["label"]}, "has 0 columns of images (label: ClassLabel), expected one, or one called image or img"),
        ({"a": datasets.Image(), "b": datasets.Image()}, "has 2 columns of images (a: Image, b: Image), expected one"),
        (
            {"image": datasets.Image(), "label": datasets.Value("int64")},
            "'label' is not a ClassLabel (image: Image, label: Value), expected",
        ),
        (
            {"image": datasets.Image(), "c": FEATURES["label"], "d": FEATURES["label"]},
            "there are 2 columns of classes, none of them called label or labels or fine_label",
        ),
    ],
)
def test_columns_that_cannot_be_told_are_refused(features, message, tmp_path):
    images, labels = make(0, 2)
    as_images = [Image.fromarray(image) for image in images]
    dataset(images, labels, features, a=as_images, b=as_images, c=labels, d=labels).save_to_disk(tmp_path / "pets")
    assert f"{str(tmp_path / 'pets')!r}" in refusal(str(tmp_path / "pets"), tmp_path)
    assert message in refusal(str(tmp_path / "pets"), tmp_path)


def test_splits_of_different_classes_are_refused(tmp_path):
    dataset(*make(0, 2)).save_to_disk(tmp_path / "pets" / "train")
    dataset(*make(1, 2), {**FEATURES, "label": datasets.ClassLabel(names=NAMES[::-1])}).save_to_disk(tmp_path / "pets" / "test")
    (tmp_path / "pets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "image and label of test differ in type from the other splits" in refusal(str(tmp_path / "pets"), tmp_path)


def test_parquet_files_in_folders_of_splits(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        dataset(*PARTS["train" if name == "train" else "test"]).to_parquet(tmp_path / "pets" / name / "0000.parquet")
    # Files that name no split beside others that do are not even opened.
    (tmp_path / "pets" / "contest-trainers.parquet").write_bytes(b"PAR1")
    check(open_hf(str(tmp_path / "pets"), tmp_path))


def test_the_name_of_a_parquet_file_goes_before_that_of_its_folder(tmp_path):
    (tmp_path / "test").mkdir()
    dataset(*PARTS["train"]).to_parquet(tmp_path / "test" / "Train.parquet")
    check(open_hf(str(tmp_path), tmp_path), {"train": PARTS["train"]})


def test_what_systems_put_next_to_parquet_files_is_left_out(tmp_path):
    save_parquet(tmp_path)
    clean = open_hf(str(tmp_path), tmp_path).files
    for folder in ("@eaDir", ".cache", "__MACOSX/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train-0.parquet").write_bytes(b"PAR1")
    (tmp_path / "data" / "._train-00000-of-00002.parquet").write_bytes(b"")
    assert open_hf(str(tmp_path), tmp_path).files == clean


def test_transparent_images_are_laid_on_the_ground(tmp_path):
    images, labels = make(0, 7)
    clear = [np.dstack([image, np.zeros(image.shape[:2], np.uint8)]) for image in images]
    dataset(clear, labels).to_parquet(tmp_path / "train.parquet")
    for ground, level in (("white", 255), ("black", 0)):
        found = open_prepared(prepare(open_hf(str(tmp_path), tmp_path), Options(6, ground=ground), tmp_path / "cache"))
        assert (found.splits["train"].images == level).all()


def test_parquet_files_that_name_no_split_are_train(tmp_path):
    # The names of the folders above do not count.
    folder = tmp_path / "test" / "pets"
    folder.mkdir(parents=True)
    dataset(*PARTS["train"]).to_parquet(folder / "0000.parquet")
    check(open_hf(str(folder), tmp_path), {"train": PARTS["train"]})


def test_parquet_files_of_several_configs_are_refused(tmp_path):
    for config in ("32x32", "64x64"):
        (tmp_path / config).mkdir()
        dataset(*make(0, 2)).to_parquet(tmp_path / config / "train-0.parquet")
    assert "the train split in" in refusal(str(tmp_path), tmp_path)
    assert "lies in 32x32, 64x64, expected one folder; name one of these" in refusal(str(tmp_path), tmp_path)
    assert open_hf(str(tmp_path / "32x32"), tmp_path).name == "32x32"


def test_parquet_files_of_different_columns_are_refused(tmp_path):
    dataset(*make(0, 2)).to_parquet(tmp_path / "train-0.parquet")
    dataset(*make(0, 2), {"image": datasets.Image()}).to_parquet(tmp_path / "train-1.parquet")
    assert f"{str(tmp_path / 'train-1.parquet')!r} has the columns image: Image, expected those of" in refusal(str(tmp_path), tmp_path)


def test_an_image_without_its_bytes_is_refused(tmp_path):
    for rows in ([None], [{"bytes": None, "path": "a.png"}]):
        table = dataset(*make(0, 1)).data.table
        image = type(table).from_pydict({"image": rows}, schema=table.schema.remove(1))
        parquet.write_table(
            image.append_column("label", table.column("label")).replace_schema_metadata(table.schema.metadata), tmp_path / "a.parquet"
        )
        source = open_hf(str(tmp_path), tmp_path)
        with pytest.raises(DataError, match=r"image 0 of train in .* is .*, expected the bytes of an image file") as caught:
            list(source.splits["train"].images.read())
        assert str(rows[0]) in str(caught.value)


@pytest.mark.parametrize("name", ["train/data-00000-of-00001.arrow", "train/state.json", "train/dataset_info.json", "dataset_dict.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "missing"])
def test_a_damaged_dataset_is_named(name, how, tmp_path):
    save(tmp_path / "pets")
    file = tmp_path / "pets" / name
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    message = refusal(str(tmp_path / "pets"), tmp_path)
    if (name, how) == ("dataset_dict.json", "missing"):
        assert "is not a folder that save_to_disk wrote or with parquet files" in message
    else:
        assert f"cannot read {str(file if name == 'dataset_dict.json' else file.parent)!r}: " in message


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_damaged_parquet_file_is_named(how, tmp_path):
    save_parquet(tmp_path)
    file = tmp_path / "data" / "train-00001-of-00002.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    assert f"cannot read {str(file)!r}: ArrowInvalid: " in refusal(str(tmp_path), tmp_path)


def test_a_parquet_file_that_is_gone_after_opening_is_named(tmp_path):
    save_parquet(tmp_path)
    source = open_hf(str(tmp_path), tmp_path)
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet"):
        pixels(source.splits["train"])


@pytest.mark.parametrize("argument", ["", "/nowhere/pets", "a/b/c", "owner/pets:a:b", "https://huggingface.co/datasets/a"])
def test_an_argument_that_can_be_no_dataset_is_refused(argument, tmp_path, monkeypatch):
    # No argument is not the working directory.
    save_parquet(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert f"'hf:{argument}' is not a folder that save_to_disk wrote or with parquet files, nor OWNER/NAME" in refusal(argument, tmp_path)


@pytest.mark.parametrize("argument", ["mnist", "owner/pets", "owner/pets:64x64"])
def test_what_was_not_downloaded_is_refused_with_the_command(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(argument, tmp_path / "my data")
    kept = tmp_path / "my data" / "huggingface" / argument.replace("/", "--").replace(":", "--")
    assert f"was not downloaded to {str(kept)!r}" in message
    assert message.endswith(f"run: python -m ssdd_jax.data download hf:{argument} --data_dir '{tmp_path}/my data'")
    assert not list(tmp_path.iterdir())


def test_a_download_is_kept_and_read_without_the_library_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    # The Hub itself cannot be had here.
    def load_dataset(name, config, cache_dir):
        asked.append((name, config))
        dataset(*make(0, 1)).save_to_disk(cache_dir)
        return both()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(open_hf("owner/pets:small", tmp_path, download=True))
    check(open_hf("owner/pets:small", tmp_path, download=True))
    source = open_source("hf:owner/pets:small", tmp_path)
    check(source)
    assert source.name == "owner--pets--small"
    assert asked == [("owner/pets", "small")]
    # What was made on the way is gone.
    assert [file.name for file in (tmp_path / "huggingface").iterdir()] == ["owner--pets--small"]
    check(open_hf("pets", tmp_path, download=True))
    assert asked[1:] == [("pets", None)]


def test_a_download_that_fails_leaves_nothing_that_could_be_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load_dataset(name, config, cache_dir):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("owner/pets", tmp_path, download=True)
    assert "cannot download hf:owner/pets to" in message
    assert "ConnectionError: Couldn't reach the Hub; see https://huggingface.co/datasets/owner/pets" in message
    assert "was not downloaded" in refusal("owner/pets", tmp_path)


def test_a_download_that_cannot_be_saved_whole_leaves_nothing_that_could_be_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class HalfSaved:
        def save_to_disk(self, folder):
            save(tmp_path / folder)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: HalfSaved())
    assert "OSError: [Errno 28] No space left on device" in refusal("pets", tmp_path, download=True)
    assert "was not downloaded" in refusal("pets", tmp_path)


def test_a_download_that_broke_off_while_saving_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "huggingface" / ".pets.tmp" / "left over").mkdir(parents=True)
    assert "was not downloaded" in refusal("pets", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: both())
    check(open_hf("pets", tmp_path, download=True))
    assert not list(tmp_path.rglob("left over"))


def test_a_folder_of_that_name_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "pets")
    check(open_hf("pets", tmp_path / "data", download=True))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "data source 'hf' needs datasets, which is not installed; run: pip install ssdd-jax[hf]" in refusal("mnist", tmp_path)


def test_a_dataset_without_splits_is_refused(tmp_path):
    save(tmp_path / "pets")
    shutil.rmtree(tmp_path / "pets" / "train")
    (tmp_path / "pets" / "dataset_dict.json").write_text(json.dumps({"splits": []}))
    assert "has 0 columns of images (no columns)" in refusal(str(tmp_path / "pets"), tmp_path)
