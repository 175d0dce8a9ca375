"""Datasets from the Hugging Face Hub, and folders written by its library `datasets`."""

import importlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.data.source import PUBLISHED_SPLITS, EncodedImage, EncodedImages, Source, Split, choose_splits, damaged, is_clutter
from ssdd_jax.errors import DataError

_KNOWN_SPLITS = tuple(name for names in PUBLISHED_SPLITS.values() for name in names)
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_BATCH = 256
_SAVED_SPLIT = "a split that save_to_disk wrote"
_PARQUET = "a complete parquet file"
_LAYOUTS = "that save_to_disk wrote or with parquet files"


@dataclass(frozen=True)
class _Rows:
    """A split: its number of rows, its features by column, how to read a column's values in order, and the files they come from."""

    count: int
    features: Mapping[str, Any]
    read: Callable[[str], Iterator[Any]]
    files: tuple[Path, ...]


def open_hf(argument: str, data_dir: Path, download: bool = False) -> Source:
    """Open a dataset of images from a folder, or one that was downloaded from the Hugging Face Hub.

    A folder is one that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or one with parquet files, such as a copy of a
    repository. The split of a parquet file is a word in its name, or else in the nearest folder's, as in train-00000-of-00001.parquet
    and test/0000.parquet; if no file has one, all are train, otherwise files without one are ignored. The files of one split must lie
    in one folder: if there are several configs, name the folder of one. Opening never touches the network.

    Images come from the column called image, else img, else the only column of images. Labels come from the ClassLabel column called
    label, else labels, else fine_label (fine classes go before coarse ones), else the only one; without any, nothing is labelled.
    Splits are chosen as `ssdd_jax.data.source.choose_splits` does.

    Args:
      argument: FOLDER, or on the Hub NAME, OWNER/NAME or OWNER/NAME:CONFIG. A folder takes precedence.
      data_dir: a dataset of the Hub is kept in `data_dir`/huggingface/OWNER--NAME--CONFIG, as `save_to_disk` writes it.
      download: if it is not there yet, download it. The published files stay in the Hugging Face library's own cache ($HF_HOME).

    Raises:
      DataError: `datasets` is not installed, there is no such folder and nothing was downloaded, the download fails, the columns of
        images or labels cannot be determined, or files are damaged.
    """
    datasets = _import_datasets()
    folder = Path(os.path.abspath(os.path.expanduser(argument)))
    if argument and _has_data(folder):
        return _open_folder(datasets, folder)
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+(:[\w.-]+)?", argument, re.ASCII):
        raise DataError(f"data source 'hf:{argument}' is not a folder {_LAYOUTS}, nor OWNER/NAME or OWNER/NAME:CONFIG of the Hub; fix it")
    kept = data_dir / "huggingface" / re.sub("[/:]", "--", argument)
    if not kept.is_dir():
        if not download:
            raise DataError(
                f"hf:{argument} is not a folder {_LAYOUTS}, and was not downloaded to {str(kept)!r}; correct the path, name its folder "
                f"with config.data.data_dir, or run: python -m ssdd_jax.data download hf:{argument} --data_dir {shlex.quote(str(data_dir))}"
            )
        _download(datasets, argument, kept)
    return _open_folder(datasets, kept)


def _open_folder(datasets: Any, folder: Path) -> Source:
    rows = _open_saved(datasets, folder) if _is_saved(folder) else _open_parquet(datasets, folder)
    where = repr(str(folder))
    known = {name: split for name, split in rows.items() if name in _KNOWN_SPLITS} or rows
    features = next((split.features for split in known.values()), {})
    image, label = _image_column(datasets, where, features), _label_column(datasets, where, features)
    columns = [column for column in (image, label) if column is not None]
    for name, split in known.items():
        if any(split.features.get(column) != features[column] for column in columns):
            raise DataError(f"{where}: {' and '.join(columns)} of {name} differ in type from the other splits, expected one; cast them")

    def read_labels(name: str) -> np.ndarray | None:
        if label is None:
            return None
        values = (-1 if value is None else value for value in known[name].read(label))
        return np.fromiter(values, np.int32, known[name].count)

    chosen = choose_splits(where, rows, read_labels)
    channels = {"L": 1, "RGB": 3}.get(features[image].mode, 0)
    splits = {
        split: Split(EncodedImages(known[name].count, partial(_read_images, where, known[name], image, split), channels), labels)
        for split, (name, labels) in chosen.items()
    }
    files = [file for name, _ in chosen.values() for file in known[name].files]
    return Source(folder.name, splits, tuple(features[label].names) if label else (), tuple(files))


def _read_images(where: str, rows: _Rows, column: str, split: str) -> Iterator[EncodedImage]:
    for index, value in enumerate(rows.read(column)):
        content = value.get("bytes") if isinstance(value, dict) else None
        if content is None:
            raise DataError(
                f"image {index} of {split} in {where} is {str(value)[:120]}, expected the bytes of an image file; "
                "write the dataset again without that row, or with save_to_disk, which puts the files into it"
            )
        yield EncodedImage(index, f"{split}/{index}", content)


def _image_column(datasets: Any, where: str, features: Mapping[str, Any]) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in _IMAGE_NAMES if name in found]
    if not named and len(found) != 1:
        raise DataError(
            f"{where} has {len(found)} columns of images ({_describe(features)}), expected one, or one called {' or '.join(_IMAGE_NAMES)}; "
            "cast or rename it and save the dataset again"
        )
    return (named or found)[0]


def _label_column(datasets: Any, where: str, features: Mapping[str, Any]) -> str | None:
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in found]
    # Labels of another type would otherwise be dropped silently.
    if untyped := [name for name in _LABEL_NAMES if name in features and not found]:
        problem = f"{untyped[0]!r} is not a ClassLabel"
    elif len(found) > 1 and not named:
        problem = f"there are {len(found)} columns of classes, none of them called {' or '.join(_LABEL_NAMES)}"
    else:
        return (named or found or [None])[0]
    raise DataError(
        f"{where}: {problem} ({_describe(features)}), expected one ClassLabel or no such column; "
        "cast it with class_encode_column, or rename it, and save the dataset again"
    )


def _describe(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items()) or "no columns"


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _has_data(folder: Path) -> bool:
    return folder.is_dir() and (_is_saved(folder) or next(_parquet_files(folder), None) is not None)


def _parquet_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*.parquet") if not any(map(is_clutter, file.relative_to(folder).parts)))


def _open_saved(datasets: Any, folder: Path) -> dict[str, _Rows]:
    if not (folder / "dataset_dict.json").is_file():
        rows = _open_saved_split(datasets, folder)
        return {rows[0] or "train": rows[1]}
    with _reading(folder / "dataset_dict.json", "the list of splits that save_to_disk writes"):
        names = [str(name) for name in json.loads((folder / "dataset_dict.json").read_text())["splits"]]
    return {name: _open_saved_split(datasets, folder / name)[1] for name in names}


def _open_saved_split(datasets: Any, folder: Path) -> tuple[str, _Rows]:
    with _reading(folder, _SAVED_SPLIT):
        dataset = datasets.Dataset.load_from_disk(str(folder), keep_in_memory=False)

    def read(column: str) -> Iterator[Any]:
        # Arrow stores an image as its file's bytes and path; reading through the feature would decode it.
        with _reading(folder, _SAVED_SPLIT):
            for batch in dataset.select_columns([column]).with_format("arrow").iter(_BATCH):
                yield from batch.column(column).to_pylist()

    files = (folder / "state.json", folder / "dataset_info.json", *(Path(file["filename"]) for file in dataset.cache_files))
    return str(dataset.split or ""), _Rows(len(dataset), dataset.features, read, files)


def _open_parquet(datasets: Any, folder: Path) -> dict[str, _Rows]:
    parquet = importlib.import_module("pyarrow.parquet")
    by_split: dict[str, list[Path]] = {}
    for file in sorted(_parquet_files(folder)):
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if set(by_split) == {""}:
        by_split = {"train": by_split[""]}
    rows = {}
    for name, files in by_split.items():
        if not name:
            continue
        if len({file.parent for file in files}) > 1:
            folders = sorted({str(file.parent.relative_to(folder)) for file in files})
            raise DataError(f"the {name} split in {str(folder)!r} lies in {', '.join(folders)}, expected one folder; name one of these")
        rows[name] = _open_parquet_split(datasets, parquet, files)
    return rows


def _open_parquet_split(datasets: Any, parquet: Any, files: list[Path]) -> _Rows:
    count, features = 0, {}
    for file in files:
        with _reading(file, _PARQUET), parquet.ParquetFile(file) as opened:
            count += opened.metadata.num_rows
            found = datasets.Features.from_arrow_schema(opened.schema_arrow)
        features = features or found
        if found != features:
            raise DataError(f"{str(file)!r} has the columns {_describe(found)}, expected those of {str(files[0])!r}; write both alike")

    def read(column: str) -> Iterator[Any]:
        for file in files:
            with _reading(file, _PARQUET), parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(_BATCH, columns=[column]):
                    yield from batch.column(0).to_pylist()

    return _Rows(count, features, read, tuple(files))


def _split_of(path: Path) -> str:
    """Return the split named by a word of the file's name, or of the nearest folder's; "" if there is none."""
    words = [re.split("[^a-z]+", part.lower()) for part in (path.stem, *reversed(path.parts[:-1]))]
    return next((name for part in words for name in _KNOWN_SPLITS if name in part), "")


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    # Arrow's errors derive from these.
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise damaged(path, error, expected) from error


def _import_datasets() -> Any:
    # Imported here: it is an optional extra.
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"data source 'hf' needs {error.name or error}, which is not installed; run: pip install ssdd-jax[hf]") from error


def _download(datasets: Any, argument: str, folder: Path) -> None:
    name, _, config = argument.partition(":")
    # The files that `datasets` converts are kept until everything is done: an interrupted download is resumed from them.
    cache, temporary = folder.with_name(f".{folder.name}.cache"), folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        datasets.load_dataset(name, config or None, cache_dir=str(cache)).save_to_disk(str(temporary))
        temporary.rename(folder)
    # The network, the Hub, the dataset's files and the disk all raise errors of their own.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        where = f"hf:{argument} to {str(folder)!r}"
        raise DataError(f"cannot download {where}: {reason}; see https://huggingface.co/datasets/{name}") from error
    shutil.rmtree(cache, ignore_errors=True)
