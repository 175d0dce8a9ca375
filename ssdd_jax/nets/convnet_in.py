"""The network that label sets of the literature are made and read with: blocks of convolution, instance norm, ReLU and average pooling."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import Conv, InstanceNorm, Linear, average_pool, grey_margin, halving_problem
from ssdd_jax.nets.net import Net


class ConvNetIN(nn.Module):
    """ConvNet with instance norm (Zhao et al., 2021): one block per width, three of 128 as published.

    The first convolution pads images of one channel by 3, see `ssdd_jax.nets.layers.grey_margin`.
    Features are the flattened output of the last block; with `pooled`, its spatial mean. It is the same in training and evaluation.
    """

    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        margin = grey_margin(x.shape[-1])
        for width in self.widths:
            x = average_pool(nn.relu(InstanceNorm()(Conv(width, padding=1 + margin)(x))))
            margin = 0
        features = x.mean((1, 2)) if self.pooled else x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


def _problem(widths: tuple[int, ...], image_shape: Sequence[int]) -> str:
    return halving_problem("convnet_in", widths, image_shape, grey_margin(image_shape[2]))


def _torch_name(name: str) -> str:
    kind, index = name.split(".")
    # Each block is four entries of a Sequential: convolution, norm, ReLU, pooling.
    return f"features.{4 * int(index) + ('Conv', 'InstanceNorm').index(kind)}"


NET = Net(ConvNetIN, lambda image_shape: (128, 128, 128), problem=_problem, flattens=True, torch_head="classifier", torch_name=_torch_name)
