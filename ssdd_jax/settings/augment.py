"""How a random view is drawn, as plain settings. Kept apart from the functions, so that reading settings needs no jax."""

from dataclasses import dataclass, field


def fraction(default: float, high: float = 1.0):
    """Declare a number in [0, high]."""
    return field(default=default, metadata={"range": (0.0, high)})


@dataclass(frozen=True)
class AugmentSpec:
    """How one view of a self-supervised pair is drawn (defaults: solo-learn's Barlow Twins on CIFAR, first view).

    solo-learn resizes crops with `cubic` interpolation; the default here is `linear`.

    Attributes:
        min_crop_scale: smallest area fraction of a random resized crop; 1 means no crop.
        interpolation: interpolation of the resized crop: linear, or cubic (Keys, a = -1/2, as in Pillow).
        padding: zeros, in pixels, added on every side before a random crop of the image's own size; 0 means no crop.
        flip: probability of a horizontal flip; 0 where left and right matter.
        jitter: probability of colour jitter.
        brightness: factor range 1 +- brightness.
        contrast: factor range 1 +- contrast.
        saturation: factor range 1 +- saturation; no effect on one channel.
        hue: shift range +-hue, in turns of the colour circle; no effect on one channel.
        gray: probability of dropping the colour; no effect on one channel.
        blur: probability of a Gaussian blur with sigma U(0.1, 2) pixels.
        solarize: probability of inverting the pixels above one half.
    """

    min_crop_scale: float = fraction(0.08)
    interpolation: str = field(default="linear", metadata={"choices": ("linear", "cubic")})
    padding: int = field(default=0, metadata={"range": (0, 1024)})
    flip: float = fraction(0.5)
    jitter: float = fraction(0.8)
    brightness: float = fraction(0.4)
    contrast: float = fraction(0.4)
    saturation: float = fraction(0.2)
    hue: float = fraction(0.1, 0.5)
    gray: float = fraction(0.2)
    blur: float = fraction(0.0)
    solarize: float = fraction(0.0)


def crop_and_flip(padding: int, flip: float) -> AugmentSpec:
    """Return the usual augmentation of small images: a crop of the padded image, and a horizontal flip with probability `flip`."""
    return AugmentSpec(1.0, padding=padding, flip=flip, jitter=0.0, gray=0.0)


_DSA = ("color", "crop", "cutout", "flip", "scale", "rotate")
_FREPO = ("flip", "jitter", "zoom", "rotate", "translate", "hole")
OPERATIONS = tuple(dict.fromkeys((*_DSA, *_FREPO)))
"""What the differentiable augmentation of label sets draws from, see `ssdd_jax.core.diff_augment`."""


def _without_flip(operations: tuple[str, ...]) -> str:
    return "_".join(name for name in operations if name != "flip")


WITH_FLIP, WITHOUT_FLIP = "_".join(_DSA), _without_flip(_DSA)
"""Its strategies for natural images, CIFAR and FashionMNIST among them, and where left and right matter: MNIST, SVHN and other digits."""
FREPO_WITH_FLIP, FREPO_WITHOUT_FLIP = "_".join(_FREPO), _without_flip(_FREPO)
"""FRePo's, likewise."""
