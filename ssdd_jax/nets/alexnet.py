"""AlexNet for small images: five convolutions with batch norm, and a single linear layer."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import Linear, conv_stack
from ssdd_jax.nets.net import Net

# Kernel size of each of the five convolutions, and whether max-pooling follows it.
_KERNELS = (5, 5, 3, 3, 3)
_POOLED = (True, True, False, False, True)


class AlexNet(nn.Module):
    """AlexNet as in KRR-ST's released code: convolution, batch norm and ReLU five times, three max-poolings.

    Features are the flattened output, (H // 8) (W // 8) widths[-1]; with `pooled`, its spatial mean.
    """

    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        x = conv_stack(x, train, self.widths, _KERNELS, _POOLED)
        features = x.mean((1, 2)) if self.pooled else x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


def _problem(widths: tuple[int, ...], image_shape: Sequence[int]) -> str:
    if min(image_shape[:2]) >= 8:
        return ""
    return f"alexnet halves {tuple(image_shape)} images to nothing, expected at least 8 x 8 pixels; pad them"


NET = Net(AlexNet, lambda image_shape: (128, 192, 256, 192, 192), num_widths=5, problem=_problem, flattens=True)
