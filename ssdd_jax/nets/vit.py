"""Vision transformer for small images: patches of 4 x 4 pixels and a class token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssdd_jax.nets.initial import initializer
from ssdd_jax.nets.layers import Conv, Linear
from ssdd_jax.nets.net import Net

PATCH = 4
HEADS = 3

# timm truncates at +-2, a hundred standard deviations, which is a plain normal distribution.
_init = initializer("normal", lambda shape: 0.02)


def _linear(width: int, name: str | None = None) -> Linear:
    return Linear(width, _init, nn.initializers.zeros, name=name)


def layer_norm(name: str) -> nn.LayerNorm:
    """Return a layer norm with timm's eps, 1e-6."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(Q K^T / sqrt(head width)) V."""

    @nn.compact
    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        n, t, width = x.shape
        qkv = _linear(3 * width, "qkv")(x).reshape(n, t, 3, HEADS, width // HEADS)
        q, k, v = (qkv[:, :, i] for i in range(3))
        weights = jax.nn.softmax(jnp.einsum("nqhw,nkhw->nhqk", q, k) * (width // HEADS) ** -0.5)
        return _linear(width, "proj")(jnp.einsum("nhqk,nkhw->nqhw", weights, v).reshape(n, t, width))


class MLP(nn.Module):
    """Two linear layers, four times as wide in between, with exact GELU."""

    @nn.compact
    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        width = x.shape[-1]
        return _linear(width, "fc2")(jax.nn.gelu(_linear(4 * width, "fc1")(x), approximate=False))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then the MLP, each added to its input."""

    @nn.compact
    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        x = x + Attention(name="attn")(layer_norm("norm1")(x))
        return x + MLP(name="mlp")(layer_norm("norm2")(x))


class ViT(nn.Module):
    """Timm's ViT with 3 heads on patches of 4 pixels, learned positions, one block per width (all equal).

    It is initialized as timm's: normal weights of standard deviation 0.02, zero biases. Features are the normalized class token.
    """

    widths: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "n H W C"], train: bool = False) -> tuple[Float[Array, "n q"], Float[Array, "n d"]]:
        n, width = len(x), self.widths[0]
        x = Conv(width, PATCH, PATCH, padding=0, name="patch_embed")(x).reshape(n, -1, width)
        cls_token = self.param("cls_token", _init, (1, 1, width))
        pos_embed = self.param("pos_embed", _init, (1, 1 + x.shape[1], width))
        x = jnp.concatenate([jnp.broadcast_to(cls_token, (n, 1, width)), x], axis=1) + pos_embed
        for index in range(len(self.widths)):
            x = Block(name=f"blocks_{index}")(x)
        features = layer_norm("norm")(x)[:, 0]
        return features, _linear(self.num_outputs)(features) if self.num_outputs else features


def _problem(widths: tuple[int, ...], image_shape: Sequence[int]) -> str:
    if len(set(widths)) > 1 or widths[0] % HEADS:
        return f"vit got widths {widths}, expected one per block, all equal and divisible by its {HEADS} heads"
    if any(size % PATCH for size in image_shape[:2]):
        return f"vit got {tuple(image_shape)} images, expected sides divisible by its patches of {PATCH} pixels; pad them"
    return ""


NET = Net(
    lambda widths, num_outputs, pooled: ViT(widths, num_outputs),
    lambda image_shape: (192,) * 6,
    problem=_problem,
    recipe="vit",
    torch_head="head",
    torch_name=lambda name: "patch_embed.proj" if name == "patch_embed" else name,
)
