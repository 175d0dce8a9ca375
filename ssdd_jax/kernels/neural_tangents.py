"""Kernels of infinitely wide networks as neural-tangents computes them, the reference of our own.

It comes with `pip install ssdd-jax[neural-tangents]` and needs a jax before 0.6. Any other `kernel_fn` of it
is a kernel of the outer loss by `ssdd_jax.kernels.infinite.matrix_kernel`.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from ssdd_jax.kernels.infinite import BIAS_VARIANCE, WEIGHT_VARIANCE, Kind, maker

Family = Literal["fc", "conv", "convnet"]


@lru_cache
def kernel_fn(family: Family, depth: int) -> Callable[..., Any]:
    """Return the kernel_fn of a network, with the weights' and biases' variances of `ssdd_jax.kernels.infinite`.

    Args:
        family: 'fc', `depth` hidden layers as in `fc_kernel`; 'conv', 3 x 3 convolutions as in `conv_kernel`; 'convnet', with pooling as in
            `ssdd_jax.kernels.pooled.pooled_kernel`.
        depth: number of hidden layers, or of blocks.

    Raises:
        ValueError: neural-tangents is not there, or cannot be imported with this jax.
    """
    try:
        stax: Any = import_module("neural_tangents").stax
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"neural-tangents cannot be imported ({error}); it needs a jax before 0.6, this is {jax.__version__}: pip install "
            "ssdd-jax[neural-tangents] in an environment of its own, or take the kernel without nt_, which is ours"
        ) from error
    scales = dict(W_std=WEIGHT_VARIANCE**0.5, b_std=BIAS_VARIANCE**0.5)
    if family == "fc":
        hidden = [part for _ in range(depth) for part in (stax.Dense(1, **scales), stax.Relu())]
        return stax.serial(stax.Flatten(), *hidden, stax.Dense(1, **scales))[2]
    pool = [stax.AvgPool((2, 2), (2, 2))] if family == "convnet" else []
    blocks = [part for _ in range(depth) for part in (stax.Conv(1, (3, 3), padding="SAME", **scales), stax.Relu(), *pool)]
    return stax.serial(*blocks, stax.Flatten(), stax.Dense(1, **scales))[2]


def nt_kernel(x1: Array, x2: Array, *, family: Family, depth: int, kind: Kind) -> Float[Array, "n1 n2"]:
    """Compute the kernel of images "n1 H W C" and "n2 H W C".

    Args:
        x1: images.
        x2: images.
        family: see `kernel_fn`.
        depth: see `kernel_fn`.
        kind: see `ssdd_jax.kernels.infinite.fc_kernel`.

    Raises:
        ValueError: see `kernel_fn`.
    """
    return kernel_fn(family, depth)(x1, x2, get=kind)


nt_fc_ntk = maker(partial(nt_kernel, family="fc"), "ntk", 1)
nt_fc_nngp = maker(partial(nt_kernel, family="fc"), "nngp", 1)
nt_conv_ntk = maker(partial(nt_kernel, family="conv"), "ntk", 3)
nt_conv_nngp = maker(partial(nt_kernel, family="conv"), "nngp", 3)
nt_convnet_ntk = maker(partial(nt_kernel, family="convnet"), "ntk", 3)
nt_convnet_nngp = maker(partial(nt_kernel, family="convnet"), "nngp", 3)
