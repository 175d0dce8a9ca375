"""ResNet with the stem for small images of solo-learn and KRR-ST: 3 x 3, stride 1, padding 2, no max-pooling."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.initial import kaiming_fan_out_init, torch_kernel_init
from ssdd_jax.nets.layers import BatchNorm, Conv, Linear
from ssdd_jax.nets.net import Net


def _conv(width: int, kernel: int, stride: int, padding: int, name: str) -> Conv:
    return Conv(width, kernel, stride, padding, use_bias=False, kernel_init=kaiming_fan_out_init, name=name)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions added to the input, through a 1 x 1 one where shapes differ; the last norm may start at zero."""

    width: int
    stride: int
    zero_init: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n H W c"], train: bool) -> Float[Array, "n h w C"]:
        y = nn.relu(BatchNorm(name="bn1")(_conv(self.width, 3, self.stride, 1, "conv1")(x), train))
        last_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        y = BatchNorm(last_init, name="bn2")(_conv(self.width, 3, 1, 1, "conv2")(y), train)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = BatchNorm(name="downsample_1")(_conv(self.width, 1, self.stride, 0, "downsample_0")(x), train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Basic-block ResNet: blocks (2, 2, 2, 2) is ResNet18, (1, 1, 1, 1) is ResNet10; features are the spatial mean.

    The padding of 2 turns 32 pixels into stages of 34, 17, 9 and 5 pixels. Modules are named as torchvision's. KRR-ST's
    students start the last norm of every block at zero; solo-learn's teachers do not, and initialize the stem like any other convolution.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    num_outputs: int
    as_teacher: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        stem_init = torch_kernel_init if self.as_teacher else kaiming_fan_out_init
        stem = Conv(self.widths[0], 3, 1, 2, use_bias=False, kernel_init=stem_init, name="conv1")
        x = nn.relu(BatchNorm(name="bn1")(stem(x), train))
        for stage, (width, num_blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(width, stride, not self.as_teacher, name=f"layer{stage + 1}_{block}")(x, train)
        features = x.mean((1, 2))
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


def _resnet(blocks_per_stage: int) -> Net:
    blocks = (blocks_per_stage,) * 4
    # `pooled` marks a teacher: the features are the spatial mean anyway.
    build = lambda widths, num_outputs, pooled: ResNet(widths, blocks, num_outputs, as_teacher=pooled)
    return Net(build, lambda image_shape: (64, 128, 256, 512), num_widths=len(blocks))


RESNET10, RESNET18 = _resnet(1), _resnet(2)
