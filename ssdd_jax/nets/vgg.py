"""VGG11 with batch norm and a single linear layer, for small images."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.layers import Linear, conv_stack
from ssdd_jax.nets.net import Net

# For each of the eight convolutions: whether max-pooling follows it.
_POOLED = (True, True, False, True, False, True, False, True)


def pad_to(x: Float[Array, "n h w C"], side: int) -> Float[Array, "n H W C"]:
    """Pad images smaller than `side` pixels with zeros to that size, centred; larger ones stay as they are."""
    before = [max(side - size, 0) // 2 for size in x.shape[1:3]]
    after = [max(side - size, 0) - pad for size, pad in zip(x.shape[1:3], before, strict=True)]
    return jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))


class VGG11(nn.Module):
    """VGG11 as in KRR-ST's released code: eight blocks of 3 x 3 convolution, batch norm and ReLU, five max-poolings.

    The poolings divide a side by 32, so smaller images are padded with zeros to 32 pixels. Features are the flattened
    output, 512 at 32 pixels; with `pooled`, its spatial mean.
    """

    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        x = conv_stack(pad_to(x, 32), train, self.widths, (3,) * len(_POOLED), _POOLED)
        features = x.mean((1, 2)) if self.pooled else x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


NET = Net(VGG11, lambda image_shape: (64, 128, 256, 256, 512, 512, 512, 512), num_widths=8, flattens=True)
