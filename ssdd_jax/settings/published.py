"""What a published distilled set does not say about itself, so that whoever reads it has to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ssdd_jax.errors import InputError, nearest

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels in [0, 1]."""

STATISTICS: Mapping[str, Statistics] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""What DC and its successors normalise images with. CIFAR-10's standard deviation is not that of its pixels, which is .2470 .2435 .2616."""

PIXELS = "pixels"
TARGETS, VIEWS, NONE = ("labels", "logits"), ("none", "mosaic"), "none"
EXPECTED = {
    "normalization": f"{', '.join(STATISTICS)}, {PIXELS} (in [0, 1], not normalised), or MEANS/STDS such as .49,.48,.45/.25,.24,.26",
    "targets": " or ".join(TARGETS),
    "views": " or ".join(VIEWS),
    "zca": f"{NONE}, or an .npz file with mean and inverse",
}
"""What each of `SetFacts` may be, by name."""


@dataclass(frozen=True)
class SetFacts:
    """What the user says about published sets; None is what was not said. On the command line it is `--set_NAME`.

    Attributes:
        normalization: what the images were normalised with: a name among `STATISTICS`, 'pixels' for images in [0, 1] that were not,
            "MEAN,.../STD,...", {"mean": [...], "std": [...]}, or the two themselves, which is what it is kept as.
        targets: what targets are that are not integers, 'labels' or 'logits'.
        views: 'mosaic' for images that stand for their four enlarged quadrants (IDM), or 'none'.
        zca: 'none', or the file with the `mean` "d" and the `inverse` "d d" of the whitening that the images went through.

    Raises:
        InputError: one of them is something else.
    """

    normalization: Any = None
    targets: str | None = None
    views: str | None = None
    zca: str | None = None

    def __post_init__(self):
        for name, choices in (("targets", TARGETS), ("views", VIEWS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise _unexpected(name, value, nearest(str(value), choices))
        if self.zca is not None and not str(self.zca):
            raise _unexpected("zca", self.zca)
        if self.normalization not in (None, PIXELS):
            object.__setattr__(self, "normalization", _statistics(self.normalization))

    @property
    def given(self) -> tuple[str, ...]:
        """Return the names of what was said."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def require(self, names: Sequence[str], whose: Any) -> None:
        """Raise an InputError that names everything among `names` that was not said about `whose`."""
        missing = [f"--set_{name} ({EXPECTED[name]})" for name in names if name not in self.given]
        if missing:
            raise InputError(f"{whose} has no manifest.json that says how to read it; give {' and '.join(missing)}")

    def statistics(self, channels: int, whose: Any) -> tuple[list[float], list[float]]:
        """Return the mean and std that images of `channels` channels were normalised with.

        Raises:
            InputError: they are of another number of channels.
        """
        mean, std = ((0.0,) * channels, (1.0,) * channels) if self.normalization == PIXELS else self.normalization
        if len(mean) != channels:
            raise InputError(f"--set_normalization has {len(mean)} channels, {whose} has images of {channels}; give that of its dataset")
        return list(mean), list(std)


NOTHING_SAID = SetFacts()


def _statistics(value: Any) -> Statistics:
    if isinstance(value, str):
        if value in STATISTICS:
            return STATISTICS[value]
        parts = [part.split(",") for part in value.split("/")]
    elif isinstance(value, Mapping):
        parts = [value.get("mean"), value.get("std")]
    else:
        parts = value
    try:
        mean, std = (tuple(map(float, part)) for part in parts)  # pyright: ignore[reportOptionalIterable]
    except (TypeError, ValueError):
        raise _unexpected("normalization", value, nearest(str(value), [*STATISTICS, PIXELS])) from None
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise _unexpected("normalization", value, ": as many means as stds, the stds positive")
    return mean, std


def _unexpected(name: str, value: Any, hint: str = "") -> InputError:
    return InputError(f"--set_{name} is {value!r}, expected {EXPECTED[name]}{hint}")
