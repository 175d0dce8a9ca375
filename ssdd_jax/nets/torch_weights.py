"""PyTorch weights as our variables; a state dict is taken as NumPy arrays, so torch is not needed here."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.errors import printable
from ssdd_jax.nets.layers import HEAD
from ssdd_jax.nets.net import Net
from ssdd_jax.registry import NETS

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Parts that DataParallel and torch.compile put into the names of whatever they wrap, be it the network or one layer of it.
_WRAPPERS = ("module", "_orig_mod")
# Where several networks fit, the one that was trained comes before averages of it: solo-learn's and MoCo's names.
_TRAINED = ("backbone.", "backbone.encoder.", "encoder.", "encoder_q.")
# What PyTorch counts: batches of a norm, models of an average.
_COUNTERS = ("num_batches_tracked", "n_averaged")


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


def _unwrap(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _listed(names: Iterable[str]) -> str:
    """Return the first three names, on one line."""
    first, more = list(names)[:3], list(names)[3:]
    return printable(", ".join(name[:80] for name in first)) + (", ..." if more else "")


def _problem(net: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], state_dict: Mapping[str, Any]) -> str:
    """Return why the arrays found in a state dict are not those wanted, by name and PyTorch's shape, or ''."""
    missing = sorted(set(wanted) - set(found), key=_natural)
    if missing:
        there = [name for name, array in state_dict.items() if hasattr(array, "shape")]
        return (
            f"the state dict lacks {missing[0]} ({len(missing)} of {len(wanted)} arrays of {net}); "
            f"found {_listed(there) or 'no arrays'}, expected {_listed(missing)}; is it another network's?"
        )
    # A setting or a counter is no part of the network, whatever its name.
    parts = [name for name, array in found.items() if hasattr(array, "shape") and name.split(".")[-1] not in _COUNTERS]
    unexpected = [name for name in parts if name not in wanted]
    if unexpected:
        return f"the state dict has {_listed(unexpected[:1])} ({len(unexpected)} such), which {net} lacks; is it another network's?"
    for name, expected in wanted.items():
        if not hasattr(found[name], "shape"):
            return f"{name} of the state dict is {printable(str(found[name]))}, expected an array of floating-point numbers; convert it"
        array = np.asarray(found[name])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return f"{name} of the state dict has dtype {array.dtype}, expected floating-point numbers; convert it"
        if array.shape != expected:
            return f"{name} of the state dict has shape {array.shape}, expected {expected} for this {net}"
    return ""


def _own_arrays(
    net: str, wanted: Mapping[str, tuple[int, ...]], state_dict: Mapping[str, Any], left_out: tuple[str, ...]
) -> dict[str, Any]:
    """Return the network's arrays under its own names; `left_out` are beginnings of such names that are not wanted."""
    # Own name, still with a prefix -> name in the state dict.
    names = {_unwrap(name): name for name in state_dict}
    if len(names) < len(state_dict):
        twice = next(name for name in state_dict if names[_unwrap(name)] != name)
        raise ValueError(f"the state dict has both {_listed([twice, names[_unwrap(twice)]])}, expected one of them; leave the other out")
    # How many of the arrays wanted there are behind each prefix.
    counts = Counter(name.removesuffix(key) for name in names for key in wanted if f".{name}".endswith(f".{key}"))
    most = max(counts.values(), default=0)
    behind = {}
    for prefix in [prefix for prefix, count in counts.items() if count == most] or [""]:
        own = {own.removeprefix(prefix): state_dict[name] for own, name in names.items() if own.startswith(prefix)}
        behind[prefix] = {name: array for name, array in own.items() if not name.startswith(left_out)}
    problems = {prefix: _problem(net, wanted, own, state_dict) for prefix, own in behind.items()}
    fits = [prefix for prefix, problem in problems.items() if not problem]
    if not fits:
        raise ValueError(next(iter(problems.values())))
    chosen = next((prefix for prefix in _TRAINED if prefix in fits), fits[0])
    if len(fits) > 1 and chosen not in _TRAINED:
        examples = _listed(names[prefix + next(iter(wanted))] for prefix in fits)
        raise ValueError(
            f"{len(fits)} networks in the state dict fit {net}, expected one (their first arrays: {examples}); keep one by its prefix: "
            "safetensors.numpy.save_file({k: v for k, v in read_state_dict(FILE).items() if k.startswith(PREFIX)}, NEW)"
        )
    return behind[chosen]


def parameter_names(net: str, template_variables: Any) -> list[str]:
    """Return the names of a network's parameters in the order of PyTorch's `parameters()`: layer by layer, the weight before the bias.

    Args:
        net: a name in `NETS`, of a network that in PyTorch is one sequence of layers and a linear layer.
        template_variables: see `variables_from_torch`.

    Raises:
        ValueError: the network is another.
    """
    NETS.check(net, f"net is {net!r}")
    about: Net = NETS[net]
    paths = [tuple(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(template_variables["params"])]
    names = [_torch_key(about, path) for path in paths]
    found = {name: re.fullmatch(r"(\w+)\.(\d+)\.(weight|bias)", name) for name in names if not name.startswith(f"{about.torch_head}.")}
    layers = {name: match for name, match in found.items() if match is not None}
    if len(layers) < len(found) or len({match[1] for match in layers.values()}) != 1:
        raise ValueError(f"net is {net!r}, of whose parameters PyTorch's order is not known; expected one such as convnet_in")
    place = lambda name: (int(layers[name][2]) if name in layers else math.inf, name.endswith(".bias"))
    return sorted(names, key=place)


def variables_from_torch(net: str, state_dict: Mapping[str, Any], template_variables: Any) -> Any:
    """Return a network's variables with the weights of a PyTorch state dict.

    Kernels go from OIHW to HWIO, linear layers are transposed, and the rows of a linear layer on a flattened feature map go
    from the order (C, H, W) to (H, W, C).

    Args:
        net: a name in `NETS`.
        state_dict: name -> array, as `{key: tensor.numpy() for key, tensor in module.state_dict().items()}`. The names are
            those of KRR-ST's released code for convnet, vgg11, alexnet and mobilenet, DC's for convnet_in and convnet_no_norm and of
            that kind for convnet_frepo, torchvision's for the resnets and timm's for vit. Parts 'module' and '_orig_mod' (of
            DataParallel and torch.compile) are dropped wherever they stand. In front of the names there may be any prefix, such as
            'model.' or 'backbone.', behind which the arrays are the network's and no others; entries without that prefix (a projector,
            say) are left out. Of several prefixes that fit, 'backbone.', 'backbone.encoder.', 'encoder.' or 'encoder_q.' is taken, the
            first that there is.
        template_variables: arrays or `jax.ShapeDtypeStruct`s of the variables wanted, as from
            `jax.eval_shape(learner.init, key)`. If they have no linear layer, that of the state dict is ignored.

    Raises:
        ValueError: the net is unknown; an array is missing, has another shape or is not of floating-point numbers, or is not one of the
            network's; or several prefixes fit, none of which is named above.
    """
    NETS.check(net, f"net is {net!r}")
    about: Net = NETS[net]
    leaves, tree = jax.tree_util.tree_flatten_with_path(template_variables)
    paths = [tuple(part.key for part in path[1:]) for path, _ in leaves]
    keys = [_unwrap(_torch_key(about, path)) for path in paths]
    wanted = {key: _torch_shape(leaf.shape, path[-1]) for key, path, (_, leaf) in zip(keys, paths, leaves, strict=True)}
    left_out = () if HEAD in template_variables["params"] else (f"{about.torch_head}.",)
    found = _own_arrays(net, wanted, state_dict, left_out)

    # The last feature map of a network that flattens it has as many channels as the last convolution.
    convolutions = sorted((key for key, (_, leaf) in zip(keys, leaves, strict=True) if len(leaf.shape) == 4), key=_natural)
    arrays = []
    for path, key, (_, leaf) in zip(paths, keys, leaves, strict=True):
        array = np.asarray(found[key])
        if path[-1] == "kernel":
            if path[0] == HEAD and about.flattens:
                channels = found[convolutions[-1]].shape[0]
                array = array.reshape(len(array), channels, -1).transpose(0, 2, 1).reshape(len(array), -1)
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        arrays.append(jnp.asarray(array, leaf.dtype))
    return jax.tree.unflatten(tree, arrays)


def torch_from_variables(net: str, variables: Any) -> dict[str, np.ndarray]:
    """Return the PyTorch state dict of a network, which `variables_from_torch` turns back into its variables.

    Args:
        net: a name in `NETS`.
        variables: as from `learner.init`.

    Raises:
        ValueError: the net is unknown.
    """
    NETS.check(net, f"net is {net!r}")
    about: Net = NETS[net]
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    state_dict = {}
    for path, leaf in leaves:
        names, array = tuple(part.key for part in path[1:]), np.asarray(leaf)
        if names[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state_dict[_unwrap(_torch_key(about, names))] = array
    head = f"{about.torch_head}.weight"
    if about.flattens and head in state_dict:
        convolutions = sorted((key for key, array in state_dict.items() if array.ndim == 4), key=_natural)
        channels, weight = len(state_dict[convolutions[-1]]), state_dict[head]
        state_dict[head] = weight.reshape(len(weight), -1, channels).transpose(0, 2, 1).reshape(len(weight), -1)
    return {name: np.ascontiguousarray(array) for name, array in state_dict.items()}
