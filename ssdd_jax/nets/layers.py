"""Layers with PyTorch's conventions, which the published numbers depend on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.conv import convolve, convolve_depthwise, is_fast
from ssdd_jax.nets.initial import torch_bias_init, torch_kernel_init

PerChannel = Float[Array, " C"]

# Name of the linear layer on top of the features among the parameters of every network: flax's name for the only linear layer.
HEAD = "Linear_0"


class Conv(nn.Module):
    """Convolution with explicit symmetric padding (flax's SAME pads differently at stride 2); the bias starts as that of `Linear`."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    use_bias: bool = True
    kernel_init: Callable = torch_kernel_init
    bias_init: Callable | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w C"]:
        return nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            self.stride,
            [(self.padding, self.padding)] * 2,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init or torch_bias_init(self.kernel**2 * x.shape[-1]),
            conv_general_dilated=convolve,
        )(x)


class DepthwiseConv(nn.Module):
    """3 x 3 convolution of each channel on its own, padding 1, no bias."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n h w C"]:
        kernel = self.param("kernel", torch_kernel_init, (3, 3, 1, x.shape[-1]))
        return convolve_depthwise(x, kernel, (self.stride, self.stride), ((1, 1), (1, 1)))


class Linear(nn.Module):
    """Fully connected layer over the last axis; without a `bias_init` the bias starts as in PyTorch."""

    width: int
    kernel_init: Callable = torch_kernel_init
    bias_init: Callable | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n q"]) -> Float[Array, "*n d"]:
        return nn.Dense(self.width, kernel_init=self.kernel_init, bias_init=self.bias_init or torch_bias_init(x.shape[-1]))(x)


EPS = 1e-5


def _row_of(x: Array) -> Callable[[PerChannel], Array]:
    return lambda values: values.reshape((1,) * (x.ndim - 1) + (-1,))


def _scaled(x: Float[Array, "*n C"], mean: PerChannel, var: PerChannel, scale: PerChannel, bias: PerChannel) -> Float[Array, "*n C"]:
    # Once the statistics are known, the normalization is one multiply and one add per element.
    factor = jax.lax.rsqrt(var + EPS) * scale
    row = _row_of(x)
    return (x * row(factor) + row(bias - mean * factor)).astype(x.dtype)


def _normalize(x: Float[Array, "*n C"], scale: PerChannel, bias: PerChannel) -> tuple[Float[Array, "*n C"], PerChannel, PerChannel]:
    """Return a batch normalized by its own statistics, its mean and its biased variance."""
    exact, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean, var = exact.mean(axes), exact.var(axes)
    return _scaled(x, mean, var, scale, bias), mean, var


def _normalize_forward(x: Array, scale: Array, bias: Array) -> tuple[Any, Any]:
    outputs, mean, var = _normalize(x, scale, bias)
    return (outputs, mean, var), (x, mean, var, scale)


def _normalize_backward(inputs: tuple[Array, ...], gradients: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    (x, mean, var, scale), (of_outputs, of_mean, of_var) = inputs, gradients
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    exact, row = of_outputs.astype(jnp.float32), _row_of(x)
    inverse = jax.lax.rsqrt(var + EPS)
    by_bias, by_scale = exact.sum(axes), (exact * (x - row(mean))).sum(axes) * inverse
    # Through the variance every element has a gradient proportional to its distance from the mean.
    slope = (2.0 * of_var - scale * inverse**2 * by_scale) / count
    offset = (of_mean - scale * inverse * by_bias) / count - slope * mean
    return (exact * row(scale * inverse) + x * row(slope) + row(offset)).astype(x.dtype), by_scale, by_bias


# As a factor and an offset per channel, the gradient takes XLA fewer passes over the batch than the derived one.
_fast_normalize = jax.custom_vjp(_normalize)
_fast_normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last: eps `EPS`, running averages 0.9 old + 0.1 new.

    The batch is normalized by its biased variance and the running variance averages the unbiased one, as in PyTorch;
    flax's own layer averages the biased one.
    """

    scale_init: Callable = nn.initializers.ones
    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*n C"], train: bool) -> Float[Array, "*n C"]:
        width = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        scale, bias = jnp.ones(width), jnp.zeros(width)
        if self.affine:
            scale, bias = self.param("scale", self.scale_init, (width,)), self.param("bias", nn.initializers.zeros, (width,))
        if not train:
            return _scaled(x, running_mean.value, running_var.value, scale, bias)
        outputs, mean, var = (_fast_normalize if is_fast() else _normalize)(x, scale, bias)
        count = x.size // width
        if not self.is_initializing():
            running_mean.value = 0.9 * running_mean.value + 0.1 * mean
            running_var.value = 0.9 * running_var.value + 0.1 * var * (count / max(count - 1, 1))
        return outputs


class InstanceNorm(nn.Module):
    """Normalization of every channel of every image over its pixels, by the biased variance, eps `EPS`; then scale and bias per channel.

    It is PyTorch's GroupNorm with as many groups as channels. A channel that is constant over the image becomes its bias.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"]) -> Float[Array, "n H W C"]:
        exact, shape = x.astype(jnp.float32), (x.shape[-1],)
        mean, var = exact.mean((1, 2), keepdims=True), exact.var((1, 2), keepdims=True)
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        row = _row_of(x)
        factor = jax.lax.rsqrt(var + EPS) * row(scale)
        return ((exact - mean) * factor + row(bias)).astype(x.dtype)


def conv_stack(
    x: Float[Array, "n H W c"], train: bool, widths: Sequence[int], kernels: Sequence[int], pooled: Sequence[bool]
) -> Float[Array, "n h w C"]:
    """Apply convolution, batch norm and ReLU once per width, followed by max-pooling where `pooled` says so.

    To be called inside a module's `__call__`. Names count the entries of PyTorch's Sequential, in which ReLU and pooling count too.
    """
    index = 0
    for width, kernel, followed_by_pool in zip(widths, kernels, pooled, strict=True):
        x = Conv(width, kernel, padding=kernel // 2, name=f"features_{index}")(x)
        x = nn.relu(BatchNorm(name=f"features_{index + 1}")(x, train))
        x = max_pool(x) if followed_by_pool else x
        index += 4 if followed_by_pool else 3
    return x


def grey_margin(channels: int) -> int:
    """Return by how many pixels on every side the first convolution of a network of label sets makes an image larger.

    It pads images of one channel by 3, so that 28 pixels become 32 (and 32 become 36, which three poolings make 4, too).
    """
    return 2 if channels == 1 else 0


def halving_problem(net: str, widths: Sequence[int], image_shape: Sequence[int], margin: int = 0) -> str:
    """Return why images, larger by a margin on every side, cannot be halved once per width, or ''."""
    if min(image_shape[:2]) + 2 * margin >= 2 ** len(widths):
        return ""
    return f"a {net} of {len(widths)} blocks halves {tuple(image_shape)} images to nothing; give fewer widths"


def average_pool(x: Float[Array, "n H W C"]) -> Float[Array, "n h w C"]:
    """Average 2 x 2 blocks, dropping an odd last row or column."""
    return (_fast_average if is_fast() else _average)(x)


def _average(x: Float[Array, "n H W C"]) -> Float[Array, "n h w C"]:
    n, h, w, c = x.shape
    x = x[:, : h - h % 2, : w - w % 2]
    return 0.25 * (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2])


def _average_forward(x: Float[Array, "n H W C"]) -> tuple[Float[Array, "n h w C"], Float[Array, "n H W C"]]:
    return _average(x), x


def _average_backward(x: Float[Array, "n H W C"], gradient: Float[Array, "n h w C"]) -> tuple[Float[Array, "n H W C"]]:
    n, h, w, c = gradient.shape
    blocks = jnp.broadcast_to((0.25 * gradient)[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
    return (jnp.pad(blocks, ((0, 0), (0, x.shape[1] - 2 * h), (0, x.shape[2] - 2 * w), (0, 0))),)


# One copy to all four pixels: the derived gradient, a sum of four padded images, takes XLA's CPU backend more than twice as long.
_fast_average = jax.custom_vjp(_average)
_fast_average.defvjp(_average_forward, _average_backward)


def max_pool(x: Float[Array, "n H W C"]) -> Float[Array, "n h w C"]:
    """Take the maximum of 2 x 2 blocks, dropping an odd last row or column.

    Equal maxima share the gradient, where PyTorch gives it to the first. After a ReLU only zeros tie in practice, and
    its own gradient is zero there.
    """
    n, h, w, c = x.shape
    x = x[:, : h - h % 2, : w - w % 2]
    return jnp.maximum(jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2]), jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]))
