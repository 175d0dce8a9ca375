"""Datasets that TensorFlow Datasets (tfds) has prepared, read without TensorFlow."""

import importlib
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.data.source import EncodedImage, EncodedImages, Source, Split, choose_splits, damaged
from ssdd_jax.errors import DataError, nearest

# tfds needs importlib_resources without declaring it.
_MODULES = ("importlib_resources", "array_record.python.array_record_data_source", "tensorflow_datasets")
_PACKAGES = "tensorflow tensorflow-datasets array-record importlib_resources"
_FORMAT = "array_record"


def open_tfds(argument: str, data_dir: Path, download: bool = False) -> Source:
    """Open a dataset for image classification that tfds has prepared in its array_record format.

    It is looked for in `data_dir`, then in tfds's own folder: $TFDS_DATA_DIR, or ~/tensorflow_datasets. Without a version, the newest
    there is taken. Nothing but these folders is read, and the dataset's code is needed only to find its default config.

    The splits train, test and unlabelled are taken, and validation for test where there is no test split or all of its labels are -1
    because they are kept secret. Other splits are ignored. Images stay encoded as they are stored, in their stored order.

    Args:
      argument: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
      data_dir: where to look first.
      download: if it is not prepared in either folder, let tfds download it and prepare it in `data_dir`; this needs TensorFlow.

    Raises:
      DataError: tfds is not installed, there is no such dataset, it is not prepared or in another format, it does not pair an image with
        a class, or its files are damaged.
    """
    tfds = _import_tfds()
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", argument, re.ASCII):
        raise DataError(
            f"data source 'tfds:{argument}' does not name a dataset, expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION, "
            "such as tfds:cifar10; see https://www.tensorflow.org/datasets/catalog"
        )
    builder = _find(tfds, argument, data_dir, download)
    folder, info = Path(builder.data_dir), builder.info
    image, label = _supervised(tfds, argument, info)
    files = {str(name): [Path(os.fspath(file)) for file in split.filepaths] for name, split in info.splits.items()}

    def records(name: str, key: str, decoders: dict[str, Any]) -> Iterator[Any]:
        # A dictionary of one feature parses only that one; it gives None if a record lacks it.
        feature = tfds.features.FeaturesDict({key: info.features[key]})
        expected = f"records of {', '.join(sorted(info.features))}, as features.json says"
        for file, count in zip(files[name], info.splits[name].shard_lengths, strict=True):
            for record in _read_shard(file, count):
                try:
                    value = feature.deserialize_example_np(record, decoders=decoders)[key]
                # Other records raise errors of protobuf, NumPy or tfds, without a common type.
                except Exception as error:
                    raise damaged(file, error, expected) from error
                if value is None:
                    raise damaged(file, f"a record has no {key!r}", expected)
                yield value

    def read_labels(name: str) -> np.ndarray:
        return np.fromiter(records(name, label, {}), np.int32, info.splits[name].num_examples)

    def read_images(name: str, split: str) -> Iterator[EncodedImage]:
        for index, content in enumerate(records(name, image, {image: tfds.decode.SkipDecoding()})):
            yield EncodedImage(index, f"{split}/{index}", content)

    channels = info.features[image].shape[-1]
    chosen = choose_splits(f"tfds:{argument}", files, read_labels)
    splits = {
        split: Split(
            EncodedImages(info.splits[name].num_examples, partial(read_images, name, split), channels if channels in (1, 3) else 0), labels
        )
        for split, (name, labels) in chosen.items()
    }
    # The class names have a file of their own, if tfds knows them.
    about = [file for file in sorted(folder.iterdir()) if file.suffix == ".json" or file.name.endswith(".labels.txt")]
    used = [file for name, _ in chosen.values() for file in files[name]]
    title = "_".join(filter(None, (info.name, info.config_name)))
    return Source(title, splits, tuple(info.features[label].names or ()), (*about, *used))


def _import_tfds() -> Any:
    # Imported here: tfds is an optional extra.
    try:
        return [importlib.import_module(module) for module in _MODULES][-1]
    except ImportError as error:
        raise DataError(
            f"data source 'tfds' needs {error.name or error}, which is not installed; run: pip install ssdd-jax[tfds]"
        ) from error


def _find(tfds: Any, argument: str, data_dir: Path, download: bool) -> Any:
    folders = (data_dir, Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")))
    found = {folder: builder for folder in folders if (builder := _open_prepared(tfds, argument, folder)) is not None}
    formats = {folder: sorted(kind.value for kind in builder.info.available_file_formats()) for folder, builder in found.items()}
    for folder, builder in found.items():
        if _FORMAT in formats[folder]:
            return tfds.builder_from_directory(builder.data_dir, file_format=_FORMAT)
    command = f"python -m ssdd_jax.data download tfds:{argument} --data_dir {shlex.quote(str(data_dir))}"
    if found and (data_dir in found or not download):
        folder, builder = next(iter(found.items()))
        # tfds refuses to prepare another format where it has already prepared one.
        remedy = "move that folder away, then run" if folder == data_dir else "prepare it again, run"
        raise DataError(
            f"{str(builder.data_dir)!r} is prepared as {' and '.join(formats[folder])} only, expected {_FORMAT}, "
            f"which is read without TensorFlow; {remedy}: {command}"
        )
    name = re.split("[/:]", argument)[0]
    there = [str(file.parent.relative_to(folder)) for folder in folders for file in sorted(folder.glob(f"{name}/**/features.json"))]
    state = f"tfds:{argument} is not prepared in {' or '.join(repr(str(folder)) for folder in folders)}"
    state += f" (only {', '.join(there[:5])})" if there else ""
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        hint = nearest(name, known) or "; see https://www.tensorflow.org/datasets/catalog"
        raise DataError(f"{state}, and tfds {tfds.__version__} has no dataset {name!r} that it could prepare{hint}")
    if not download:
        raise DataError(f"{state}; name its folder with config.data.data_dir, or run: {command}")
    _prepare(tfds, argument, data_dir)
    return _find(tfds, argument, data_dir, False)


def _open_prepared(tfds: Any, argument: str, folder: Path) -> Any:
    # Unlike `tfds.builder`, this reads only the folder: it neither runs the dataset's code nor asks a storage bucket.
    reader = importlib.import_module("tensorflow_datasets.core.read_only_builder")
    try:
        return reader.builder_from_files(argument, data_dir=str(folder))
    except tfds.core.DatasetNotFoundError:
        return None
    except ImportError as error:
        raise DataError(
            f"tfds:{argument} has features that tfds reads only with {error.name or ' '.join(str(error).split())}, which is not installed; "
            "choose a dataset for image classification"
        ) from error
    # Damaged files raise errors of protobuf, JSON or tfds, without a common type.
    except Exception as error:
        raise damaged(folder / argument.partition(":")[0], error, "a dataset that tfds has prepared") from error


def _prepare(tfds: Any, argument: str, data_dir: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        build = f'tfds.builder("{argument}", data_dir={json.dumps(str(data_dir))}, file_format="{_FORMAT}").download_and_prepare()'
        raise DataError(
            f"tfds prepares {argument} only with TensorFlow, which is not installed; in an environment of its own run: "
            f"python -m venv tfds-venv && tfds-venv/bin/pip install {_PACKAGES} && "
            f"tfds-venv/bin/python -c {shlex.quote(f'import tensorflow_datasets as tfds; {build}')}"
        )
    try:
        tfds.builder(argument, data_dir=str(data_dir), file_format=_FORMAT, try_gcs=False).download_and_prepare()
    # The dataset's own code downloads and reads, and may raise anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        raise DataError(f"tfds cannot prepare {argument} in {str(data_dir)!r}: {reason}; see what tfds says about this dataset") from error


def _supervised(tfds: Any, argument: str, info: Any) -> tuple[str, str]:
    keys, features = info.supervised_keys, info.features
    pair = [features[key] for key in keys] if isinstance(keys, tuple) and all(isinstance(k, str) and k in features for k in keys) else []
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if len(pair) != 2 or not all(map(isinstance, pair, kinds)) or pair[0].np_dtype != np.uint8 or len(pair[0].shape) != 3:
        found = " and ".join(type(feature).__name__ for feature in pair) or repr(keys)
        raise DataError(
            f"tfds:{argument} pairs {found}, expected an Image of uint8 and a ClassLabel; choose a dataset for image classification"
        )
    return keys


def _read_shard(file: Path, count: int) -> Iterator[bytes]:
    reader = importlib.import_module(_MODULES[1])
    try:
        with reader.ArrayRecordDataSource(str(file)) as records:
            if len(records) != count:
                raise damaged(file, f"it holds {len(records)} records", f"{count}, as dataset_info.json says")
            for index in range(count):
                yield records[index]
    except RuntimeError as error:
        raise damaged(file, error, "a complete array_record file") from error
