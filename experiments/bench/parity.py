"""Whether PyTorch's step and ours agree: loss, gradient and trained member, from equal weights, set and batch. Needs torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from experiments.bench.torch_step import ConvNet, Outer, distilled_tensors
from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.outer import OuterState, make_outer_step
from ssdd_jax.core.pool import MemberState
from ssdd_jax.core.stores.factored import factored
from ssdd_jax.core.views import ROTATIONS
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.nets import make_learner
from ssdd_jax.nets.torch_weights import variables_from_torch

SHAPE, WIDTHS, OUTPUTS, IMAGES, BATCH = (16, 16, 3), (8, 16), 8, 10, 32
# Large enough for the regression not to magnify the rounding of float32.
RIDGE = 1e-3
# A set of plain pairs, bases under views with fewer rows than features, and with more.
SETS = {"pairs": (WIDTHS, False), "bases under views": (WIDTHS, True), "bases under views, primal": ((8, 2), True)}


def parity() -> dict[str, dict[str, float]]:
    """Return relative errors by set: of the loss, of the gradient with respect to every array of the set, of the updated member."""
    return {
        f"{name}, {label}": _errors(widths, with_bases, layout)
        for name, (widths, with_bases) in SETS.items()
        for label, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last))
    }


def _errors(widths: tuple[int, ...], with_bases: bool, memory_layout: torch.memory_format) -> dict[str, float]:
    draw = np.random.RandomState(0)
    torch.manual_seed(0)
    normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)
    views = ROTATIONS if with_bases else ("identity",)
    layout = Layout(SHAPE, (8, 8, 3) if with_bases else SHAPE, views, ("stored",) * len(views))
    stores = {}
    if with_bases:
        bases = lambda width, count: factored(fit_pca(jnp.asarray(normal(50, width)), count))
        stores = {"image_store": bases(8 * 8 * 3, 6), "repr_store": bases(OUTPUTS, 5)}
    distilled = init_distilled(jnp.asarray(normal(IMAGES, *SHAPE)), jnp.asarray(normal(len(views), IMAGES, OUTPUTS)), layout, **stores)
    images, reprs = normal(BATCH, *SHAPE), normal(BATCH, OUTPUTS)

    outer = Outer(distilled_tensors(distilled), lambda: ConvNet(widths, SHAPE, OUTPUTS), layout=memory_layout, ridge=RIDGE)
    net = outer.pool[0][0]
    for name, buffer in net.named_buffers():
        # Statistics like those of a trained network.
        if name.endswith("running_mean"):
            buffer.copy_(torch.from_numpy(0.1 * normal(*buffer.shape)))
        elif name.endswith("running_var"):
            buffer.copy_(torch.from_numpy(0.5 + 0.5 * normal(*buffer.shape) ** 2))
    learner = make_learner("convnet", widths, SHAPE, OUTPUTS)
    template = jax.eval_shape(learner.init, jax.random.key(0))
    # A copy, since the step changes the tensors in place.
    weights = lambda: {name: value.numpy().copy() for name, value in net.state_dict().items()}
    to_ours = lambda: variables_from_torch("convnet", weights(), template)
    variables = jax.tree.map(jnp.asarray, to_ours())

    optimizer, inner = optax.adamw(1e-3, weight_decay=0.0), optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9))
    member = MemberState(variables=variables, opt_state=inner.init(variables["params"]), age=jnp.zeros((), jnp.int32))
    state = OuterState(
        step=jnp.zeros((), jnp.int32),
        distilled=distilled,
        opt_state=optimizer.init(distilled),
        pool=jax.tree.map(lambda leaf: leaf[None], member),
        ridge_increases=jnp.zeros((), jnp.int32),
    )
    kernel = feature_kernel(learner, ridge=RIDGE)
    settings: dict[str, Any] = dict(kernel=kernel, optimizer=optimizer, inner_optimizer=inner, max_age=1000)
    new, metrics = jax.jit(make_outer_step(**settings))(state, jnp.asarray(images), jnp.asarray(reprs), jax.random.key(0))

    loss = outer.step(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(reprs))
    # Adam's first moment is a tenth of the first gradient.
    gradient = jax.tree.map(lambda moment: 10 * moment, optax.tree.get(new.opt_state, "mu"))
    expected = distilled_tensors(gradient).parameters
    errors = {"loss": _relative(loss, metrics["loss"])}
    errors["gradient"] = max(
        _relative(tensor.grad, array.detach()) for tensor, array in zip(outer.distilled.parameters, expected, strict=True)
    )
    trained = jax.tree.map(lambda ours, theirs: _relative(theirs, ours[0]), new.pool.variables, to_ours())
    errors["member"] = max(jax.tree.leaves(trained))
    return errors


def _relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
