"""PyTorch weights as our variables; a state dict is taken as NumPy arrays, so torch is not needed here."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.nets.layers import HEAD
from ssdd_jax.nets.net import Net
from ssdd_jax.registry import NETS

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Prefixes that wrappers and self-supervised checkpoints put before the network's own names.
_PARALLEL, _BACKBONES = "module.", ("backbone.", "encoder.")


def _torch_key(net: Net, path: tuple[str, ...]) -> str:
    """Return the name that PyTorch's network has for the array at `path` of the params or batch_stats."""
    *modules, leaf = path
    # Conv and Linear hold flax's own layer, which PyTorch's names do not have.
    if len(modules) > 1 and re.fullmatch(r"(Conv|Dense)_0", modules[-1]):
        modules.pop()
    name = ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)
    if modules[:1] == [HEAD]:
        name = net.torch_head
    elif name:
        name = net.torch_name(name)
    return f"{name}.{_LEAVES.get(leaf, leaf)}" if name else leaf


def _torch_shape(shape: tuple[int, ...], leaf: str) -> tuple[int, ...]:
    """Return the shape that PyTorch gives an array: OIHW for a convolution's kernel, (out, in) for a linear layer's."""
    if leaf != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _natural(key: str) -> list:
    """Sort 'layers.10' after 'layers.9'."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[._]", key)]


def _own_keys(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep the network's own entries, under their own names."""
    arrays = dict(state_dict)
    for prefix in (_PARALLEL, *_BACKBONES, _PARALLEL):
        if prefix in _BACKBONES and any(key.startswith(prefix) for key in arrays):
            arrays = {key: array for key, array in arrays.items() if key.startswith(prefix)}
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
    return {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}


def variables_from_torch(net: str, state_dict: Mapping[str, np.ndarray], template_variables: Any) -> Any:
    """Return a network's variables with the weights of a PyTorch state dict.

    Kernels go from OIHW to HWIO, linear layers are transposed, and the rows of a linear layer on a flattened feature map go
    from the order (C, H, W) to (H, W, C).

    Args:
        net: a name in `NETS`.
        state_dict: name -> array, as `{key: tensor.numpy() for key, tensor in module.state_dict().items()}`. The names are
            those of KRR-ST's released code for convnet, vgg11, alexnet and mobilenet, torchvision's for the resnets and
            timm's for vit; prefixes 'module.', 'backbone.' and 'encoder.' are stripped, and with one of the last two
            the other entries (a projector, say) are left out.
        template_variables: arrays or `jax.ShapeDtypeStruct`s of the variables wanted, as from
            `jax.eval_shape(learner.init, key)`. If they have no linear layer, that of the state dict is ignored.

    Raises:
        ValueError: the net is unknown; an array is missing, has another shape, or is not one of the network's.
    """
    NETS.check(net, f"net is {net!r}")
    about: Net = NETS[net]
    found = _own_keys(state_dict)
    leaves, tree = jax.tree_util.tree_flatten_with_path(template_variables)
    paths = [tuple(part.key for part in path[1:]) for path, _ in leaves]
    keys = [_torch_key(about, path) for path in paths]
    if HEAD not in template_variables["params"]:
        found = {key: array for key, array in found.items() if not key.startswith(f"{about.torch_head}.")}
    missing = sorted(set(keys) - set(found), key=_natural)
    if missing:
        raise ValueError(f"the state dict lacks {missing[0]} ({len(missing)} of {len(keys)} arrays of {net}); is it another network's?")
    unexpected = [key for key in found if key not in set(keys)]
    if unexpected:
        raise ValueError(f"the state dict has {unexpected[0]} ({len(unexpected)} such), which {net} lacks; is it another network's?")

    # The last feature map has as many channels as the last norm.
    norms = sorted((key for key in keys if key.endswith("running_mean")), key=_natural)
    arrays = []
    for path, key, (_, leaf) in zip(paths, keys, leaves, strict=True):
        array, expected = np.asarray(found[key]), _torch_shape(leaf.shape, path[-1])
        if array.shape != expected:
            raise ValueError(f"{key} of the state dict has shape {array.shape}, expected {expected} for this {net}")
        if path[-1] == "kernel":
            if path[0] == HEAD and about.flattens:
                channels = found[norms[-1]].shape[0]
                array = array.reshape(len(array), channels, -1).transpose(0, 2, 1).reshape(len(array), -1)
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        arrays.append(jnp.asarray(array, leaf.dtype))
    return jax.tree.unflatten(tree, arrays)
