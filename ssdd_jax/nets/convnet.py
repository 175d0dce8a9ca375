"""The convolutional network of dataset distillation: blocks of convolution, batch norm, ReLU and average pooling."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import BatchNorm, Conv, Linear, average_pool, halving_problem
from ssdd_jax.nets.net import Net


class ConvNet(nn.Module):
    """ConvNet: one block per width; (128, 256, 512) for 32 pixels is the student of KRR-ST and Yu et al.

    Features are the flattened output of the last block; with `pooled`, its spatial mean (a teacher's representation).
    """

    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        for width in self.widths:
            x = average_pool(nn.relu(BatchNorm()(Conv(width)(x), train)))
        features = x.mean((1, 2)) if self.pooled else x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


# The published widths, by the smallest image side that they apply to.
_WIDTHS = {224: (32, 64, 128, 256, 512), 64: (64, 128, 256, 512), 0: (128, 256, 512)}


def _published_widths(image_shape: Sequence[int]) -> tuple[int, ...]:
    return next(widths for side, widths in _WIDTHS.items() if min(image_shape[:2]) >= side)


def _problem(widths: tuple[int, ...], image_shape: Sequence[int]) -> str:
    return halving_problem("convnet", widths, image_shape)


def _torch_name(name: str) -> str:
    kind, index = name.split(".")
    return f"layers.{index}.block.{('Conv', 'BatchNorm').index(kind)}"


NET = Net(ConvNet, _published_widths, problem=_problem, flattens=True, torch_name=_torch_name)
