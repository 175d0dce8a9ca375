"""MobileNetV2 for small images, with ReLU and an expansion of 2."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import BatchNorm, Conv, DepthwiseConv, Linear
from ssdd_jax.nets.net import Net

# For each of the seven stages: expansion, number of blocks, stride of the first block.
_STAGES = ((1, 1, 1), (2, 2, 1), (2, 3, 2), (2, 4, 2), (2, 3, 1), (2, 3, 2), (2, 1, 1))


class InvertedResidual(nn.Module):
    """Expand with a 1 x 1 convolution, filter each channel with a 3 x 3 one, project with a 1 x 1 one without activation.

    A block of stride 1 adds its input, through a 1 x 1 convolution and batch norm where the widths differ.
    """

    width: int
    expansion: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n H W c"], train: bool) -> Float[Array, "n h w C"]:
        hidden = self.expansion * x.shape[-1]
        y = Conv(hidden, 1, padding=0, use_bias=False, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = DepthwiseConv(self.stride, name="conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train))
        y = Conv(self.width, 1, padding=0, use_bias=False, name="conv3")(y)
        y = BatchNorm(name="bn3")(y, train)
        if self.stride != 1:
            return y
        if x.shape != y.shape:
            x = Conv(self.width, 1, padding=0, use_bias=False, name="shortcut_0")(x)
            x = BatchNorm(name="shortcut_1")(x, train)
        return x + y


class MobileNet(nn.Module):
    """MobileNetV2 as in KRR-ST's released code: seven stages of inverted residuals between two convolutions.

    Features are the spatial mean, widths[-1] wide.
    """

    widths: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        stem, *stages, last = self.widths
        x = Conv(stem, use_bias=False, name="conv1")(x)
        x, index = nn.relu(BatchNorm(name="bn1")(x, train)), 0
        for width, (expansion, num_blocks, first_stride) in zip(stages, _STAGES, strict=True):
            for block in range(num_blocks):
                x = InvertedResidual(width, expansion, first_stride if block == 0 else 1, name=f"layers_{index}")(x, train)
                index += 1
        x = Conv(last, 1, padding=0, use_bias=False, name="conv2")(x)
        features = nn.relu(BatchNorm(name="bn2")(x, train)).mean((1, 2))
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


NET = Net(
    lambda widths, num_outputs, pooled: MobileNet(widths, num_outputs),
    lambda image_shape: (32, 16, 24, 32, 64, 96, 160, 320, 1280),
    num_widths=9,
)
