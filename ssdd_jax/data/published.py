"""What is published about the datasets that are known by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Published:
    """Facts about a dataset.

    Attributes:
      splits: number of images by split.
      classes: number of classes.
      shape: (H, W, C) of every image; () where their sizes differ.
      mean: mean of the training split's pixels per channel, in units of [0, 1]; () where none is widely used.
      std: population standard deviation, likewise.
      statistics_size: side in pixels of the images that mean and std were computed on.
    """

    splits: Mapping[str, int]
    classes: int
    shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    statistics_size: int = 0


_MNIST_SPLITS = {"train": 60_000, "test": 10_000}
_CIFAR_SPLITS = {"train": 50_000, "test": 10_000}

# No statistics where there are none that most papers agree on.
PUBLISHED: Mapping[str, Published] = {
    "digits": Published({"train": 1_438, "test": 359}, 10, (8, 8, 1)),
    "mnist": Published(_MNIST_SPLITS, 10, (28, 28, 1), (0.1307,), (0.3081,), 28),
    "fashion_mnist": Published(_MNIST_SPLITS, 10, (28, 28, 1), (0.2861,), (0.3530,), 28),
    "kmnist": Published(_MNIST_SPLITS, 10, (28, 28, 1)),
    "cifar10": Published(_CIFAR_SPLITS, 10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32),
    "cifar100": Published(_CIFAR_SPLITS, 100, (32, 32, 3), (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), 32),
    "svhn": Published({"train": 73_257, "test": 26_032}, 10, (32, 32, 3), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 32),
    "stl10": Published({"train": 5_000, "test": 8_000, "unlabelled": 100_000}, 10, (96, 96, 3)),
    "tiny_imagenet": Published(
        {"train": 100_000, "test": 10_000}, 200, (64, 64, 3), (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), 64
    ),
    "imagenet64": Published({"train": 1_281_167, "test": 50_000}, 1_000, (64, 64, 3)),
    "cub200": Published({"train": 5_994, "test": 5_794}, 200, (), (0.4857, 0.4995, 0.4324), (0.2145, 0.2098, 0.2496), 32),
    "dogs": Published({"train": 12_000, "test": 8_580}, 120, (), (0.4765, 0.4516, 0.3911), (0.2490, 0.2435, 0.2479), 32),
}
"""By name, for every name in `ssdd_jax.data.sources.NAMED`."""


def statistics_warning(source: str, manifest: Mapping[str, Any]) -> str:
    """Return one line if the training images' mean or standard deviation differs from the published one by more than 0.02, else "".

    Nothing is compared where nothing is published, or where padding or another number of channels changes the statistics.

    Args:
      source: what the dataset was opened as; only the names in `PUBLISHED` have published statistics.
      manifest: manifest of the prepared dataset, see `ssdd_jax.data.prepare.read_prepared_manifest`.
    """
    published = PUBLISHED.get(source)
    train = manifest["splits"].get("train")
    if published is None or train is None or len(published.mean) != len(train["mean"]) or is_padded(published, manifest["options"]):
        return ""
    found = (*train["mean"], *train["std"])
    if all(abs(a - b) <= MAX_DIFFERENCE for a, b in zip(found, (*published.mean, *published.std), strict=True)):
        return ""
    height, width, _ = train["shape"][1:]
    mean, std, published_mean, published_std = map(format_statistics, (train["mean"], train["std"], published.mean, published.std))
    side = published.statistics_size
    sizes = "" if height == width == side else "the standard deviation of photographs changes with their size; "
    return (
        f"{source}: the {height}x{width} train images have mean {mean} and standard deviation {std}, published for {side}x{side} are "
        f"{published_mean} and {published_std}, more than {MAX_DIFFERENCE} away; {sizes}check that these are the published files"
    )


def format_statistics(values: Sequence[float]) -> str:
    """Return the channels of a statistic in the form ".4914 .4822 .4465"."""
    return " ".join(f"{value:.4f}".removeprefix("0") for value in values)


def is_padded(published: Published, options: Mapping[str, Any]) -> bool:
    """Return whether images stored with these options have zeros around them that the published ones lack."""
    return bool(options["size"]) and options["fit"] == "pad" and published.shape[:2] != (options["size"],) * 2
