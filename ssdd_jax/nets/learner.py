"""From a network's name to plain functions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssdd_jax.core.pool import Learner
from ssdd_jax.nets.alexnet import AlexNet
from ssdd_jax.nets.convnet import ConvNet
from ssdd_jax.nets.mobilenet import MobileNet
from ssdd_jax.nets.resnet import ResNet
from ssdd_jax.nets.vgg import VGG11
from ssdd_jax.nets.vit import HEADS, PATCH, ViT

# name -> (widths, num_outputs, pooled) -> module whose call returns (features, outputs).
NETS: dict[str, Callable[[tuple[int, ...], int, bool], nn.Module]] = {
    "convnet": lambda widths, num_outputs, pooled: ConvNet(widths, num_outputs, pooled),
    "vgg11": lambda widths, num_outputs, pooled: VGG11(widths, num_outputs, pooled),
    "alexnet": lambda widths, num_outputs, pooled: AlexNet(widths, num_outputs, pooled),
    "resnet10": lambda widths, num_outputs, pooled: ResNet(widths, (1,) * len(widths), num_outputs, pooled),
    "resnet18": lambda widths, num_outputs, pooled: ResNet(widths, (2,) * len(widths), num_outputs, pooled),
    "mobilenet": lambda widths, num_outputs, pooled: MobileNet(widths, num_outputs),
    "vit": lambda widths, num_outputs, pooled: ViT(widths, num_outputs),
}

# A convnet's published widths, from so many pixels on; the others' do not depend on the size of the images.
_CONVNET_WIDTHS = {224: (32, 64, 128, 256, 512), 64: (64, 128, 256, 512), 0: (128, 256, 512)}
_WIDTHS = {
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "alexnet": (128, 192, 256, 192, 192),
    "resnet10": (64, 128, 256, 512),
    "resnet18": (64, 128, 256, 512),
    "mobilenet": (32, 16, 24, 32, 64, 96, 160, 320, 1280),
    "vit": (192,) * 6,
}
# Those whose number of widths is part of their definition; a convnet or vit has one a block, a resnet one a stage.
_FIXED = ("vgg11", "alexnet", "mobilenet")


def net_widths(net: str, widths: Sequence[int], image_shape: Sequence[int], width_factor: float = 1.0) -> tuple[int, ...]:
    """Return the widths that `make_learner` builds a network with; the last is that of a pooled representation.

    Args:
        net: a name among `NETS`.
        widths: one a block of a convnet or vit (a vit's all equal), a stage of a resnet, a convolution of vgg11 (8) and
            alexnet (5); for mobilenet stem, seven stages and last convolution. Empty: those published for the image size.
        image_shape: (H, W, C).
        width_factor: multiplies every width, which is then rounded and is at least 1.

    Raises:
        ValueError: the name is unknown, the factor is not positive, or the widths do not fit the network.
    """
    if net not in NETS:
        raise ValueError(f"net is {net!r}, expected one of {', '.join(NETS)}")
    if not (width_factor > 0 and math.isfinite(width_factor)):
        raise ValueError(f"width_factor is {width_factor}, expected a positive number; 1 leaves the widths as they are")
    if not widths:
        widths = _WIDTHS.get(net) or next(given for side, given in _CONVNET_WIDTHS.items() if min(image_shape[:2]) >= side)
    if net in _FIXED and len(widths) != len(_WIDTHS[net]):
        raise ValueError(f"{net} got {len(widths)} widths {tuple(widths)}, expected {len(_WIDTHS[net])}; give () for {_WIDTHS[net]}")
    scaled = tuple(max(1, round(width * width_factor)) for width in widths)
    if net == "vit" and (len(set(scaled)) > 1 or scaled[0] % HEADS):
        raise ValueError(f"vit got widths {scaled}, expected one a block, all equal and divisible by its {HEADS} heads")
    return scaled


PRECISIONS = ("tensorfloat32", "float32", "bfloat16")


def make_learner(
    net: str,
    widths: Sequence[int],
    image_shape: Sequence[int],
    num_outputs: int,
    *,
    pooled: bool = False,
    width_factor: float = 1.0,
    precision: str = "tensorfloat32",
) -> Learner:
    """Return a network as functions.

    Args:
        net: a name among `NETS`.
        widths: as `net_widths` takes them; empty for the published ones.
        image_shape: (H, W, C) of its input.
        num_outputs: width of the linear layer on top of the features; 0 leaves the features as outputs.
        pooled: whether features are the spatial mean instead of flattened, widths[-1] wide; those of a resnet, mobilenet
            and vit are that wide anyway.
        width_factor: multiplies every width.
        precision: of the products: 'tensorfloat32' rounds their float32 factors where the hardware has products of that kind (NVIDIA
            from Ampere on; a CPU has none, and convolves by `ssdd_jax.nets.winograd` instead), 'float32' never, and 'bfloat16'
            computes activations and products in bfloat16. Parameters, batch statistics and what the functions return are float32
            in any case.

    Raises:
        ValueError: the widths do not fit the network, or the images do not (too small, or no whole number of patches), or the precision
            is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    widths = net_widths(net, widths, image_shape, width_factor)
    side = min(image_shape[:2])
    if net == "convnet" and side < 2 ** len(widths):
        raise ValueError(f"a convnet of {len(widths)} blocks halves {tuple(image_shape)} images to nothing; give fewer widths")
    if net == "alexnet" and side < 8:
        raise ValueError(f"alexnet halves {tuple(image_shape)} images to nothing, expected at least 8 x 8 pixels; pad them")
    if net == "vit" and any(size % PATCH for size in image_shape[:2]):
        raise ValueError(f"vit got {tuple(image_shape)} images, expected sides divisible by its patches of {PATCH} pixels; pad them")
    module = NETS[net](widths, num_outputs, pooled)

    def init(key):
        variables = module.init(key, jnp.zeros((1, *image_shape)))
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply_train(variables, images):
        (_, outputs), updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    return Learner(
        init=init,
        apply=_at_precision(lambda variables, images: module.apply(variables, images)[1], precision),
        apply_train=_at_precision(apply_train, precision),
        features=_at_precision(lambda variables, images: module.apply(variables, images)[0], precision),
    )


def _at_precision(fn: Callable[[Any, Any], Any], precision: str) -> Callable[[Any, Any], Any]:
    """Return fn(variables, images), computed at a precision; what it returns is float32."""
    cast = lambda tree, dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def run(variables, images):
        with jax.default_matmul_precision(precision):
            if precision == "bfloat16":
                variables = {**variables, "params": cast(variables["params"], jnp.bfloat16)}
                images = images.astype(jnp.bfloat16)
            return cast(fn(variables, images), jnp.float32)

    return run
