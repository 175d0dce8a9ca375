"""What a network tells of itself, so that nothing else has to know it by its name."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flax import linen as nn


class Net(NamedTuple):
    """A network, as `ssdd_jax.registry.NETS` has it by its name.

    Attributes:
        build: (widths, num_outputs, pooled) -> module whose call (images "n H W C", train) returns (features "n q", outputs "n d"), the
            outputs being those of a linear layer named `ssdd_jax.nets.layers.HEAD`, or the features where num_outputs is 0.
        published_widths: image shape (H, W, C) -> the widths that it has unless others are given.
        num_widths: how many widths it takes, where that is part of its definition; 0 where any number will do.
        problem: (widths, image shape) -> why the network cannot be built so, or ''.
        recipe: how it is pretrained: 'default', or 'vit' as transformers are.
        flattens: whether unpooled features are a flattened map, so that the rows of PyTorch's linear layer have another order.
        torch_head: what PyTorch's network calls the linear layer.
        torch_name: what it calls another module, given our name for it with a dot before its number.
    """

    build: Callable[[tuple[int, ...], int, bool], nn.Module]
    published_widths: Callable[[Sequence[int]], tuple[int, ...]]
    num_widths: int = 0
    problem: Callable[[tuple[int, ...], Sequence[int]], str] = lambda widths, image_shape: ""
    recipe: str = "default"
    flattens: bool = False
    torch_head: str = "fc"
    torch_name: Callable[[str], str] = lambda name: name
