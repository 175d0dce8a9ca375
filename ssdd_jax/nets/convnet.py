"""The convolutional network of dataset distillation: blocks of convolution, batch norm, ReLU and average pooling."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import BatchNorm, Conv, Linear, average_pool


class ConvNet(nn.Module):
    """ConvNet: one block a width; (128, 256, 512) for 32 pixels is the student of KRR-ST and Yu et al.

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
