"""What is worth knowing about a prepared dataset: notes on what was done to it, and warnings about what is in it."""

from collections.abc import Mapping
from typing import Any

from ssdd_jax.data.dataset import Dataset
from ssdd_jax.data.source import Source
from ssdd_jax.data.splits import MAX_SHARED

# A larger part of a split that is one image is no coincidence: blank scans, placeholders, drawings on the wrong ground.
MAX_COPIES = 0.01
_LISTED = 8


def notes(source: Source, manifest: Mapping[str, Any]) -> list[str]:
    """Return one line on the files that were left out, and for each split on what was converted and how many images repeat others.

    Args:
      source: what was read.
      manifest: of the prepared dataset, see `ssdd_jax.data.prepare.read_prepared_manifest`.
    """
    left_out = sorted(source.left_out.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"left out: {', '.join(f'{what} ({count:,})' for what, count in left_out[:_LISTED])}"] if left_out else []
    if more := sum(count for _, count in left_out[_LISTED:]):
        lines[0] += f", and {more:,} more"
    for name, about in manifest.get("splits", {}).items():
        if about["converted"]:
            lines.append(f"{name}: converted " + ", ".join(f"{count:,} {what}" for what, count in sorted(about["converted"].items())))
        if about["repeated"]:
            lines.append(f"{name}: {about['repeated']:,} of {about['shape'][0]:,} images repeat another one")
    return lines


def warnings(where: str, dataset: Dataset, manifest: Mapping[str, Any]) -> list[str]:
    """Return one line for each thing that is probably not meant.

    That is: a class without training images, more than 1 % of a split's images being one image, a standard deviation of 0, and an
    overlap of splits that was allowed.

    Args:
      where: name of the dataset in the lines.
      dataset: the prepared dataset.
      manifest: its manifest.
    """
    lines = []
    train = dataset.splits.get("train")
    if train is not None and train.labels is not None:
        found = set(train.labels.tolist())
        empty = [label for label in range(len(dataset.class_names)) if label not in found]
        if empty:
            hint = "; labels count from 0" if empty == [0] else ""
            named = f"{len(empty)} of {len(dataset.class_names)} classes have no train image, e.g. {dataset.class_names[empty[0]]!r}"
            lines.append(f"{where}: {named}{hint}")
    for name, about in manifest["splits"].items():
        count, copies = about["shape"][0], about["most_copies"]
        if copies > max(1, MAX_COPIES * count):
            lines.append(
                f"{where}: {copies:,} of {count:,} {name} images are one and the same; look at it, and leave it out if it is blank"
            )
        if constant := [str(channel) for channel, std in enumerate(about["std"]) if std == 0]:
            channels = f" in channel {' and '.join(constant)}" if len(constant) < len(about["std"]) else ""
            lines.append(f"{where}: the {name} images have a standard deviation of 0{channels}: all of their pixels are alike")
        for other in ("train", "unlabelled"):
            if (shared := about.get(f"also_in_{other}", 0)) > MAX_SHARED * count:
                lines.append(f"{where}: the splits overlap, {shared:,} of {count:,} {name} images are {other} images too")
    return lines
