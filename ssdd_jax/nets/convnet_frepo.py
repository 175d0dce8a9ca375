"""The networks of FRePo: blocks of batch norm, convolution, ReLU and average pooling, and the same without norms for evaluation."""

from collections.abc import Sequence
from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.initial import lecun_normal_init
from ssdd_jax.nets.layers import Conv, Linear, average_pool, grey_margin, halving_problem
from ssdd_jax.nets.net import Net

OLD_SHARE = 0.1
"""Share of a running statistic that one batch leaves of it: the rest is the latest batch's, the reverse of PyTorch's momentum of .1."""


class ConvNetFRePo(nn.Module):
    """ConvNet of FRePo (Zhou et al., 2022): one block per width, 128, 256 and 512 as published.

    A norm of the batch comes before the convolution of every block but the first. It is flax's: the running variance averages the biased
    one. The first convolution pads images of one channel by 3, see `ssdd_jax.nets.layers.grey_margin`. Kernels start LeCun normal, biases
    zero. Features are the flattened output of the last block; with `pooled`, its spatial mean.
    """

    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False
    norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        start = dict(kernel_init=lecun_normal_init, bias_init=nn.initializers.zeros)
        margin = grey_margin(x.shape[-1])
        for block, width in enumerate(self.widths):
            if self.norm and block:
                x = nn.BatchNorm(use_running_average=not train, momentum=OLD_SHARE)(x)
            x = average_pool(nn.relu(Conv(width, padding=1 + margin, **start)(x)))
            margin = 0
        features = x.mean((1, 2)) if self.pooled else x.reshape(len(x), -1)
        return features, Linear(self.num_outputs, **start)(features) if self.num_outputs else features


def _problem(net: str, widths: tuple[int, ...], image_shape: Sequence[int]) -> str:
    return halving_problem(net, widths, image_shape, grey_margin(image_shape[2]))


def _torch_name(layers: int, name: str) -> str:
    kind, index = name.split(".")
    # Each block is three entries of a Sequential, convolution, ReLU and pooling, or four with the norm, which the first block has not.
    return f"features.{layers * int(index) + (layers - 1 if kind == 'BatchNorm' else 0)}"


def _net(name: str, norm: bool) -> Net:
    return Net(
        partial(ConvNetFRePo, norm=norm),
        lambda image_shape: (128, 256, 512),
        problem=partial(_problem, name),
        flattens=True,
        torch_head="classifier",
        torch_name=partial(_torch_name, 4 if norm else 3),
    )


NET, NO_NORM = _net("convnet_frepo", True), _net("convnet_no_norm", False)
