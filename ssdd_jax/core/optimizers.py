"""Optimizers from settings."""

from dataclasses import replace
from typing import Any

import jax
import optax

from ssdd_jax.core.distilled import DistilledSet, Layout, compress
from ssdd_jax.settings.evaluation import RecipeSpec
from ssdd_jax.settings.methods import KipSpec, RegressionSpec
from ssdd_jax.settings.spec import PoolSpec, RunSpec


def sgd(spec: PoolSpec | RecipeSpec, schedule: optax.Schedule | None = None) -> optax.GradientTransformation:
    """Return SGD with momentum and with weight decay added to the gradient of every parameter, as in PyTorch."""
    return optax.chain(optax.add_decayed_weights(spec.weight_decay), optax.sgd(schedule or spec.learning_rate, spec.momentum))


def student_optimizer(spec: RecipeSpec, updates: int, updates_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a student's pretraining, whose schedule takes `updates` updates."""
    warmup = min(spec.warmup_epochs * updates_per_epoch, max(updates - 1, 0))
    if spec.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else spec.learning_rate, spec.learning_rate, warmup, max(updates, 1))
    else:
        schedule = (
            optax.warmup_constant_schedule(0.0, spec.learning_rate, warmup) if warmup else optax.constant_schedule(spec.learning_rate)
        )
    if spec.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=spec.weight_decay)
    return sgd(spec, schedule)


def outer_optimizer(spec: RunSpec, method: RegressionSpec, first: int = 0) -> optax.GradientTransformation:
    """Return AdamW with the linear schedule of the outer loop, for a distilled set whose networks take part from step `first` on.

    Networks have moments and a count of their own: Adam's correction for moments that start at zero is that of their first step.
    """
    steps = num_steps(spec, method)
    linear = optax.linear_schedule(method.learning_rate, method.learning_rate * spec.outer.final_rate, max(steps, 1))
    adamw = lambda start: optax.adamw(lambda n: linear(n + start), spec.outer.b1, spec.outer.b2, weight_decay=spec.outer.weight_decay)
    stores: Any = adamw(0)
    networks: Any = adamw(first)
    # Networks in a dict, since None by itself would count as no parameters at all.
    split = lambda distilled: (replace(distilled, networks=None), {"networks": distilled.networks})

    def init(distilled: DistilledSet) -> dict[str, Any]:
        of_stores, of_networks = split(distilled)
        return {"stores": stores.init(of_stores), "networks": networks.init(of_networks)}

    def update(grads: DistilledSet, state: dict[str, Any], distilled: DistilledSet) -> tuple[DistilledSet, dict[str, Any]]:
        (store_grads, network_grads), (store_values, network_values) = split(grads), split(distilled)
        of_stores, moved = stores.update(store_grads, state["stores"], store_values)
        of_networks, trained = networks.update(network_grads, state["networks"], network_values)
        return replace(of_stores, networks=of_networks["networks"]), {"stores": moved, "networks": trained}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def continue_with_networks(
    optimizer: optax.GradientTransformation, state: dict[str, Any], distilled: DistilledSet, layout: Layout
) -> dict[str, Any]:
    """Return the state of `outer_optimizer` for a set that networks have just joined: the moments of what is kept go on.

    Args:
        optimizer: that of the steps with networks.
        state: of the steps without networks.
        distilled: the set with its networks.
        layout: layout of the finished set, see `ssdd_jax.core.distilled.compress`.
    """
    kept = lambda part: replace(compress(part, layout, distilled.networks), networks=None) if isinstance(part, DistilledSet) else part
    stores = jax.tree.map(kept, state["stores"], is_leaf=lambda part: isinstance(part, DistilledSet))
    fresh: Any = optimizer.init(distilled)
    return {**fresh, "stores": stores}


def num_steps(spec: RunSpec, method: RegressionSpec | KipSpec) -> int:
    """Return the number of outer steps of a method."""
    return spec.outer.steps if method.steps < 0 else method.steps
