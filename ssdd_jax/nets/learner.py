"""From a network's name to plain functions."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ssdd_jax.core.pool import Learner
from ssdd_jax.errors import InputError
from ssdd_jax.nets.conv import plain_convolutions
from ssdd_jax.nets.initial import at_once
from ssdd_jax.nets.net import Net
from ssdd_jax.registry import NETS
from ssdd_jax.settings.fields import PRECISIONS
from ssdd_jax.settings.spec import NetSpec


def net_widths(net: str, widths: Sequence[int], image_shape: Sequence[int], width_factor: float = 1.0) -> tuple[int, ...]:
    """Return the widths that `make_learner` builds a network with; the last is the width of a pooled representation.

    Args:
        net: a name in `NETS`.
        widths: one per block of a convnet, of whatever kind, or vit (a vit's all equal), per stage of a resnet (4), per convolution of
            vgg11 (8) and alexnet (5); for mobilenet: stem, seven stages and last convolution. Empty: those published for the image size.
        image_shape: (H, W, C).
        width_factor: multiplies every width; the result is rounded, and is at least 1.

    Raises:
        ValueError: the name is unknown, the factor is not positive, or the widths or the images do not fit the network.
    """
    NETS.check(net, f"net is {net!r}")
    if not (width_factor > 0 and math.isfinite(width_factor)):
        raise ValueError(f"width_factor is {width_factor}, expected a positive number; 1 leaves the widths as they are")
    about: Net = NETS[net]
    published = about.published_widths(image_shape)
    widths = tuple(widths) or published
    if about.num_widths and len(widths) != about.num_widths:
        raise ValueError(f"{net} got {len(widths)} widths {widths}, expected {about.num_widths}; give () for {published}")
    scaled = tuple(max(1, round(width * width_factor)) for width in widths)
    if problem := about.problem(scaled, image_shape):
        raise ValueError(problem)
    return scaled


def make_learner(
    net: str,
    widths: Sequence[int],
    image_shape: Sequence[int],
    num_outputs: int,
    *,
    pooled: bool = False,
    width_factor: float = 1.0,
    precision: str = "tensorfloat32",
    fast_convolutions: bool = True,
) -> Learner:
    """Return a network as functions.

    Args:
        net: a name in `NETS`.
        widths: as `net_widths` takes them; empty for the published ones.
        image_shape: (H, W, C) of the input.
        num_outputs: width of the linear layer on top of the features; 0 leaves the features as outputs.
        pooled: whether features are the spatial mean, widths[-1] wide, instead of flattened; resnet, mobilenet and vit
            have features of that width anyway.
        width_factor: multiplies every width.
        precision: precision of the products: 'tensorfloat32' rounds their float32 factors where the hardware has such products (NVIDIA
            from Ampere on; a CPU has none, and convolves by `ssdd_jax.nets.winograd` instead), 'float32' never rounds, and
            'bfloat16' computes activations and products in bfloat16. Parameters, batch statistics and what the functions return
            are always float32.
        fast_convolutions: whether convolutions are those of `ssdd_jax.nets.conv`, which a CPU runs several times faster. Their gradient
            is written by hand, and batch norm's with them, so `jax.jvp`, `jax.jacfwd`, `jax.linearize` and `jax.hessian` fail with a
            TypeError about forward-mode autodiff: for these give False. The values are then the same up to rounding.

    Raises:
        ValueError: the widths or the images do not fit the network (images too small, or not a whole number of patches), or the
            precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    widths = net_widths(net, widths, image_shape, width_factor)
    module = NETS[net].build(widths, num_outputs, pooled)
    draw = at_once(lambda key: module.init(key, jnp.zeros((1, *image_shape), jnp.float32)))

    def init(key):
        # Also where the caller has switched 64-bit numbers on.
        variables = _cast(draw(key), jnp.float32)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def apply_train(variables, images):
        (_, outputs), updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    traced = partial(_traced, precision=precision, fast_convolutions=fast_convolutions)
    return Learner(
        # Jitted: called as it is, it would compile every draw of every layer, and run the network, one operation after the other.
        init=jax.jit(init),
        apply=traced(lambda variables, images: module.apply(variables, images)[1]),
        apply_train=traced(apply_train),
        features=traced(lambda variables, images: module.apply(variables, images)[0]),
    )


def student_learner(spec: NetSpec, image_shape: Sequence[int], num_outputs: int, where: str = "config.student", **settings: Any) -> Learner:
    """Return the network of some settings, with a linear layer of `num_outputs` on its flattened features.

    Args:
        spec: its name and its widths.
        image_shape: (H, W, C) of the input.
        num_outputs: see `make_learner`.
        where: the setting that it comes from, for messages.
        **settings: further ones of `make_learner`.

    Raises:
        InputError: the widths or the images do not fit the network.
    """
    try:
        return make_learner(spec.net, spec.widths, image_shape, num_outputs, width_factor=spec.width_factor, **settings)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def check_no_batch_norm(spec: NetSpec, learner: Learner, where: str) -> None:
    """Refuse a network with batch statistics, where its parameters must be all of its state, and images must not depend on each other.

    Raises:
        InputError: the message names the setting and the network.
    """
    if jax.tree.leaves(jax.eval_shape(learner.init, jax.random.key(0))["batch_stats"]):
        raise InputError(f"{where} is {spec.net!r}, which normalizes over a batch; expected a network that does not, such as 'convnet_in'")


def _traced(fn: Callable[[Any, Any], Any], precision: str, fast_convolutions: bool) -> Callable[[Any, Any], Any]:
    """Return fn(variables, images), with products at a precision and these convolutions; the result is float32."""

    def run(variables, images):
        with jax.default_matmul_precision(precision), nullcontext() if fast_convolutions else plain_convolutions():
            if precision == "bfloat16":
                variables = {**variables, "params": _cast(variables["params"], jnp.bfloat16)}
                images = images.astype(jnp.bfloat16)
            return _cast(fn(variables, images), jnp.float32)

    return run


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
