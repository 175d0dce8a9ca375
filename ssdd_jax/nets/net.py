"""What a network declares about itself, so that no other code has to know it by name."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flax import linen as nn


class Net(NamedTuple):
    """A network, as listed by name in `ssdd_jax.registry.NETS`.

    Attributes:
        build: (widths, num_outputs, pooled) -> module whose call (images "n H W C", train) returns (features "n q", outputs "n d"):
            the outputs of a linear layer named `ssdd_jax.nets.layers.HEAD`, or the features if num_outputs is 0.
        published_widths: image shape (H, W, C) -> the widths used unless others are given.
        num_widths: how many widths it takes, if that is part of its definition; 0 if any number will do.
        problem: (widths, image shape) -> why the network cannot be built with these, or ''.
        recipe: how it is pretrained: 'default', or 'vit' for transformers.
        flattens: whether unpooled features are a flattened map, so that the rows of PyTorch's linear layer have a different order.
        torch_head: name of the linear layer in PyTorch's network.
        torch_name: our name of a module, with a dot before its number -> its name in PyTorch's network.
    """

    build: Callable[[tuple[int, ...], int, bool], nn.Module]
    published_widths: Callable[[Sequence[int]], tuple[int, ...]]
    num_widths: int = 0
    problem: Callable[[tuple[int, ...], Sequence[int]], str] = lambda widths, image_shape: ""
    recipe: str = "default"
    flattens: bool = False
    torch_head: str = "fc"
    torch_name: Callable[[str], str] = lambda name: name
