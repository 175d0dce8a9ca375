"""Layers with PyTorch's conventions, which the published numbers depend on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

# PyTorch's default for convolutions and linear layers: weight and bias uniform in +-1/sqrt(fan_in).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# ResNets: He normal over fan_out.
kaiming_fan_out_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_bias_init(fan_in: int) -> Callable:
    """Return the initializer of a bias, uniform in +-1/sqrt(fan_in)."""
    limit = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


class Conv(nn.Module):
    """Convolution with explicit symmetric padding (flax's SAME pads otherwise at stride 2)."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    use_bias: bool = True
    kernel_init: Callable = torch_kernel_init

    @nn.compact
    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w C"]:
        return nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            self.stride,
            [(self.padding, self.padding)] * 2,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=torch_bias_init(self.kernel**2 * x.shape[-1]),
        )(x)


class Linear(nn.Module):
    """Fully connected layer."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n q"]) -> Float[Array, "n d"]:
        return nn.Dense(self.width, kernel_init=torch_kernel_init, bias_init=torch_bias_init(x.shape[-1]))(x)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last: eps 1e-5, running averages 0.9 old + 0.1 new.

    The batch is normalized by its biased variance and the running variance averages the unbiased one, as in PyTorch;
    flax's own layer averages the biased one.
    """

    scale_init: Callable = nn.initializers.ones
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*n C"], train: bool) -> Float[Array, "*n C"]:
        width, axes = x.shape[-1], tuple(range(x.ndim - 1))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // width
            if not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (count / max(count - 1, 1))
        # One multiply and one add per element: what is left of the normalization once the statistics are known.
        factor = jax.lax.rsqrt(var + 1e-5)
        offset = -mean * factor
        if self.affine:
            scale, bias = self.param("scale", self.scale_init, (width,)), self.param("bias", nn.initializers.zeros, (width,))
            factor, offset = factor * scale, offset * scale + bias
        row = lambda v: v.reshape((1,) * (x.ndim - 1) + (width,))
        return x * row(factor) + row(offset)


def average_pool(x: Float[Array, "n H W C"]) -> Float[Array, "n h w C"]:
    """Average 2 x 2 blocks, dropping an odd last row or column."""
    n, h, w, c = x.shape
    # Strided slices: XLA's CPU backend runs their gradient much faster than that of reduce_window.
    x = x[:, : h - h % 2, : w - w % 2]
    return 0.25 * (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2])
