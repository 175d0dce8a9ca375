"""ResNet with the stem for small images of solo-learn and KRR-ST: 3 x 3, stride 1, padding 2, no max-pooling."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import BatchNorm, Conv, Linear, kaiming_fan_out_init


class ResNet(nn.Module):
    """Basic-block ResNet: blocks (2, 2, 2, 2) is ResNet18, (1, 1, 1, 1) is ResNet10; features are the spatial mean.

    The padding of 2 turns 32 pixels into stages of 34, 17, 9 and 5 pixels. The last norm of a block starts at zero.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        conv = lambda width, kernel=3, stride=1, padding=1: Conv(
            width, kernel, stride, padding, use_bias=False, kernel_init=kaiming_fan_out_init
        )
        x = nn.relu(BatchNorm()(conv(self.widths[0], padding=2)(x), train))
        for stage, (width, num_blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(BatchNorm()(conv(width, stride=stride)(x), train))
                y = BatchNorm(scale_init=nn.initializers.zeros)(conv(width)(y), train)
                if x.shape != y.shape:
                    x = BatchNorm()(conv(width, 1, stride, 0)(x), train)
                x = nn.relu(x + y)
        features = x.mean((1, 2))
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features
