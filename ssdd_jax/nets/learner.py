"""From a network's name to plain functions."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from ssdd_jax.core.pool import Learner
from ssdd_jax.nets.convnet import ConvNet
from ssdd_jax.nets.resnet import ResNet

# name -> (widths, num_outputs, pooled) -> module whose call returns (features, outputs).
NETS: dict[str, Callable[[tuple[int, ...], int, bool], nn.Module]] = {
    "convnet": lambda widths, num_outputs, pooled: ConvNet(widths, num_outputs, pooled),
    "resnet10": lambda widths, num_outputs, pooled: ResNet(widths, (1,) * len(widths), num_outputs),
    "resnet18": lambda widths, num_outputs, pooled: ResNet(widths, (2,) * len(widths), num_outputs),
}


def make_learner(net: str, widths: Sequence[int], image_shape: Sequence[int], num_outputs: int, *, pooled: bool = False) -> Learner:
    """Return a network as functions.

    Args:
        net: a name among `NETS`.
        widths: channels of every block or stage.
        image_shape: (H, W, C) of its input.
        num_outputs: width of the linear layer on top of the features; 0 leaves the features as outputs.
        pooled: whether features are the spatial mean instead of flattened (a ResNet's always are).

    Raises:
        ValueError: the name is unknown, or the images are too small for so many blocks.
    """
    if net not in NETS:
        raise ValueError(f"net is {net!r}, expected one of {', '.join(NETS)}")
    if net == "convnet" and min(image_shape[:2]) < 2 ** len(widths):
        raise ValueError(f"a convnet of {len(widths)} blocks halves {tuple(image_shape)} images to nothing; give fewer widths")
    module = NETS[net](tuple(widths), num_outputs, pooled)

    def init(key):
        variables = module.init(key, jnp.zeros((1, *image_shape)))
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply_train(variables, images):
        (_, outputs), updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    return Learner(
        init=init,
        apply=lambda variables, images: module.apply(variables, images)[1],
        apply_train=apply_train,
        features=lambda variables, images: module.apply(variables, images)[0],
    )
